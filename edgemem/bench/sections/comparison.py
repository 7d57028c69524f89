"""The bundle compared with baselines and with the floor, in the same rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import pictures, statistics
from edgemem.bench.baselines import GROWING, Ready, Skipped
from edgemem.bench.floor import Floor, FloorReady
from edgemem.bench.positions import Sweep, sweep_of
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.rounds import EDGEMEM, measure_rounds
from edgemem.bench.sections.steps import Steps
from edgemem.bench.statistics import CONFIDENCE, Interval, median_ms
from edgemem.bench.subject import Run
from edgemem.bench.table import Card, Picture, Table
from edgemem.bench.words import count, ms, number, spread, times

_COMPARED_FROM = 1_000
"""The bundle is compared at the first of its positions from here on."""
_BARRED_LENGTH = 4_096


@dataclass(frozen=True)
class Baseline:
    """An alternative to the bundle, measured in the same rounds.

    Attributes:
        key: Stable name.
        name: Name for people.
        how: What was run.
        p50_ms: Median of one step; ``None`` if it was skipped.
        ratio: Its time over edgemem's, paired by round; above 1, edgemem is faster.
        skipped: Why it was not measured.
    """

    key: str
    name: str
    how: str
    p50_ms: float | None = None
    ratio: Interval | None = None
    skipped: str | None = None


@dataclass(frozen=True)
class PositionBytes:
    """Bytes of the state of one stream at a position."""

    position: int
    state_bytes: int


@dataclass(frozen=True)
class Comparison(Section, key="comparison", title="Compared with", place=30, stage=Stage.ROUNDS):
    """Baselines and the floor, in the same rounds as the bundle's own sweep over positions.

    Attributes:
        edgemem_p50_ms: The bundle's own step in these rounds.
        edgemem_position: Position of its stream; ``None``: anywhere.
        rounds: Turns of each contender.
        steps_per_round: Timed steps of a turn.
        baselines: The baselines.
        floor: ``None`` if it was not measured; ``floor_skipped`` is the reason.
        growing: The growing cache against position; ``None`` if it was skipped (its baseline has the reason).
        growing_state: Its bytes by its contract, also at positions where nothing was measured.
    """

    edgemem_p50_ms: float
    edgemem_position: int | None
    rounds: int
    steps_per_round: int
    baselines: list[Baseline]
    floor: Floor | None
    floor_skipped: str | None
    growing: Sweep | None
    growing_state: list[PositionBytes]

    @classmethod
    def measure(cls, run: Run) -> Comparison | None:
        made = run.once(measure_rounds)
        if made.floor is None:
            return None
        own = next((p for p in made.positions if p >= _COMPARED_FROM), made.positions[-1])
        return compare(made.baselines, made.floor, made.samples, f"{EDGEMEM}@{own}", run.plan.positions)

    def tables(self, result: BenchResult) -> list[Table]:
        where = "" if self.edgemem_position is None else f" at position {count(self.edgemem_position)}"
        rows: list[tuple[str, ...]] = [("edgemem", "1", "", f"this bundle{where}")]
        if self.floor is not None:
            floor = self.floor.step_over_floor.inverse()
            how = f"the weights read once, {self.floor.method}"
            rows.append(("floor", number(floor.value), spread(floor), how))
        rows += [(b.name, number(b.ratio.value), spread(b.ratio), b.how) for b in self.baselines if b.ratio is not None]
        columns = ("what", "× edgemem", "interval", "how")
        notes = [
            f"{count(self.rounds)} rounds. In each, every contender makes {count(self.steps_per_round)} steps, in "
            "shuffled order. The ratio is the median of the ratios of the rounds, with its "
            f"{CONFIDENCE:.0%} interval.",
            *self.skipped_notes(),
        ]
        bars = self._bars(result)
        picture = Picture(
            "Time of a step of each contender over that of the bundle", partial(_draw_bars, bars), 0.8 + 0.5 * len(bars)
        )
        drawn = [picture] if len(bars) > 1 else []
        tables = [Table(self.key, self.title, columns, rows, columns[1:3], notes, drawn, brief=True)]
        if self.floor is not None:
            tables.append(self.floor.table())
        if self.growing is not None:
            tables.append(self.growing.table("growing", "Growing KV cache against position"))
        return tables

    def cards(self, result: BenchResult) -> list[Card]:
        if self.floor is None:
            return []
        with_state = self.floor.step_over_all
        both = "" if with_state is None else f"; {times(with_state)} with the state"
        return [Card("over the floor", times(self.floor.step_over_floor), f"the weights read once{both}")]

    def method(self, result: BenchResult) -> dict[str, str]:
        floor = (
            "the time in which the GPU moves as many bytes when it copies a large block within its memory, counting "
            "what it reads and what it writes"
            if result.subject.device == "cuda"
            else "the time in which this machine multiplies matrices of the same shapes and bytes with vectors, by the "
            "fastest way found"
        )
        return {
            "Comparison": "All contenders have the same number of threads and take turns with the bundle in the same "
            "rounds. A ratio is the median of the ratios of the rounds. The hand-written loop passes whole states "
            "through numpy. torch runs the model without a compiler. Both have the weights of the bundle. The growing "
            "cache is a decoder of the same shape with full attention and random weights, in the same engine. Each "
            "contender makes a few untimed steps before its turn, since the previous one has filled the caches.",
            "Floor": f"A step must read every weight matrix once. The floor is {floor}, in the same rounds as the "
            "model. It leaves out the state, attention and everything between the products.",
        }

    def skipped_notes(self) -> list[str]:
        """What was not measured and why: one sentence for each reason."""
        names: dict[str, list[str]] = {}
        if self.floor_skipped is not None:
            names.setdefault(self.floor_skipped, []).append("floor")
        for baseline in self.baselines:
            if baseline.skipped is not None:
                names.setdefault(baseline.skipped, []).append(baseline.name)
        return [f"Not measured: {', '.join(who)}. Reason: {reason.rstrip('.')}." for reason, who in names.items()]

    def _bars(self, result: BenchResult) -> list[tuple[str, float, str, str]]:
        """Name, time over the bundle's, label and colour of each bar, the longest first."""
        steps = result.get(Steps)
        p50_ms = steps.latency.percentile_ms(50.0) if steps else None
        bars = [
            (result.subject.legend, 1.0, f"1×, {ms(self.edgemem_p50_ms if p50_ms is None else p50_ms)}", pictures.OURS)
        ]
        ratios = [(b.name, b.ratio, pictures.OTHER) for b in self._barred() if b.ratio]
        if self.floor is not None:
            ratios.append(("floor", self.floor.step_over_floor.inverse(), pictures.FLOOR))
        bars += [(name, ratio.value, times(ratio), color) for name, ratio, color in ratios]
        return sorted(bars, key=lambda bar: bar[1], reverse=True)

    def _barred(self) -> list[Baseline]:
        """The baselines with a bar: of the growing cache, which has its own plot, only one length."""
        growing = {int(b.key.partition("@")[2]): b for b in self.baselines if b.key.startswith(f"{GROWING}@")}
        length = max((p for p in growing if p <= _BARRED_LENGTH), default=min(growing, default=0))
        return [b for b in self.baselines if b not in growing.values() or b is growing[length]]


def _draw_bars(bars: list[tuple[str, float, str, str]], figure: Any) -> None:
    """Draw one bar for each contender, with its ratio to the bundle."""
    axes = figure.add_subplot()
    rows = range(len(bars))
    drawn = axes.barh(list(rows), [bar[1] for bar in bars], color=[bar[3] for bar in bars], height=0.42)
    for row, bar, (name, value, text, color) in zip(rows, drawn, bars, strict=True):
        pictures.hover(bar, f"{name}: {text}")
        axes.annotate(name, (0, row), xytext=(0, 9), textcoords="offset points", va="bottom", color=pictures.INK)
        axes.annotate(text, (value, row), xytext=(5, 0), textcoords="offset points", va="center", color=color)
    axes.set_xlim(0, max(bar[1] for bar in bars) * 1.4)
    axes.set_ylim(-0.5, len(bars) - 0.15)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("time of a step, over the bundle's")


def compare(
    prepared: Sequence[Ready | Skipped],
    floor: FloorReady | Skipped,
    samples: Mapping[str, NDArray[np.int64]],
    own_name: str,
    positions: Sequence[int],
) -> Comparison:
    """Make the comparison of interleaved samples.

    Args:
        prepared: The baselines.
        floor: The ways to read the weights.
        samples: What :func:`~edgemem.bench.measure.interleave` measured of all of them.
        own_name: Which of the samples are the bundle's own: ``name`` or ``name@position``.
        positions: Where the bytes of the growing cache are given, besides the positions where it was measured.
    """
    own = samples[own_name]
    position = own_name.partition("@")[2]
    growing = next((b for b in prepared if isinstance(b, Ready) and b.contract is not None), None)
    sweep, state = None, []
    if growing is not None and growing.contract is not None:
        everywhere = sorted({*positions, *growing.positions})
        state = [PositionBytes(p, growing.contract.state_bytes_at(p)) for p in everywhere]
        if len(growing.positions) > 1:
            sweep = sweep_of(GROWING, samples, growing.contract, growing.positions)
    return Comparison(
        edgemem_p50_ms=median_ms(own),
        edgemem_position=int(position) if position else None,
        rounds=own.shape[0],
        steps_per_round=own.shape[1],
        baselines=[result for baseline in prepared for result in _results(baseline, samples, own)],
        floor=floor.floor(samples, own) if isinstance(floor, FloorReady) else None,
        floor_skipped=floor.reason if isinstance(floor, Skipped) else None,
        growing=sweep,
        growing_state=state,
    )


def _results(
    baseline: Ready | Skipped, samples: Mapping[str, NDArray[np.int64]], own: NDArray[np.int64]
) -> list[Baseline]:
    if isinstance(baseline, Skipped):
        return [Baseline(baseline.key, baseline.name, baseline.how, skipped=baseline.reason)]
    results = []
    for contender in baseline.contenders:
        _, _, position = contender.name.partition("@")
        at = f" at {count(int(position))}" if position else ""
        ns = samples[contender.name]
        ratio = statistics.ratio(ns, own)
        results.append(Baseline(contender.name, baseline.name + at, baseline.how, median_ms(ns), ratio))
    return results
