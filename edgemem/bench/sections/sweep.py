"""Latency and state of the bundle against the position of the stream."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

from edgemem.bench import pictures
from edgemem.bench.positions import PositionPoint, Sweep, sweep_of
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.rounds import EDGEMEM, measure_rounds
from edgemem.bench.sections.comparison import Comparison
from edgemem.bench.sections.environment import Environment
from edgemem.bench.subject import Run
from edgemem.bench.table import Picture, Table
from edgemem.bench.words import count, ms, number, times
from edgemem.console import readable_bytes

_LOG_FROM_RATIO = 4.0
"""An axis is logarithmic if its values differ by more than this factor."""


@dataclass(frozen=True)
class Positions(Sweep, Section, key="sweep", title="Latency against position", place=20, stage=Stage.ROUNDS):
    """The bundle's own sweep over positions."""

    @classmethod
    def measure(cls, run: Run) -> Positions:
        made = run.once(measure_rounds)
        sweep = sweep_of(EDGEMEM, made.samples, run.session.contract, made.positions)
        return cls(sweep.points, sweep.slope_ns_per_1000_positions, sweep.last_over_first)

    def tables(self, result: BenchResult) -> list[Table]:
        latency = Picture("Latency of a step against the position of the stream", partial(_draw_latency, self, result))
        table = self.table("positions", self.title)
        return [dataclasses.replace(table, pictures=[latency], on_top=True), self._state_table(result)]

    def headline(self, result: BenchResult) -> str:
        last = self.points[-1]
        size = readable_bytes(last.state_bytes)
        if not result.subject.has_fixed_size:
            return f"The state grows: {size} at position {count(last.position)}."
        first = next(point for point in self.points if point.position > 0)
        return (
            f"At position {count(last.position)} it takes {times(self.last_over_first)} what it takes at "
            f"{count(first.position)}. The state is {size} at every position."
        )

    def method(self, result: BenchResult) -> dict[str, str]:
        return {
            "Latency against position": "At each position, a state that the model reached itself, with full rings, is "
            "injected into the same stream. The positions take turns in shuffled order, so a machine that slows down "
            "slows all of them down. Each round gives one least-squares slope. The table has the median of the rounds, "
            "with the interval of its order statistics. The axis is linear up to position ten, and logarithmic "
            "from there."
        }

    def bytes_at(self, position: int) -> int:
        """Bytes of the state of one stream, at one of the positions or, for a state of fixed size, anywhere."""
        return next((p.state_bytes for p in self.points if p.position == position), self.points[-1].state_bytes)

    def _state_table(self, result: BenchResult) -> Table:
        comparison = result.get(Comparison)
        growing = {p.position: p.state_bytes for p in comparison.growing_state} if comparison else {}
        positions = sorted({*growing, *(p.position for p in self.points)})
        columns: tuple[str, ...] = ("position", "this bundle", *(["growing KV cache"] if growing else []))
        rows = [
            (count(p), readable_bytes(self.bytes_at(p)), *([readable_bytes(growing[p])] if growing else []))
            for p in positions
        ]
        draw = partial(_draw_state, {p.position: p.state_bytes for p in self.points}, growing, result)
        picture = Picture("Bytes of the state of one stream against its position", draw)
        note = "As the contracts define it, not measured."
        return Table("state", "State of one stream against position", columns, rows, columns, [note], [picture], True)


def _draw_latency(own: Sweep, result: BenchResult, figure: Any) -> None:
    """Draw the p50 of a step against position, for the bundle and for the growing cache."""
    axes = figure.add_subplot()
    comparison = result.get(Comparison)
    growing, floor = (comparison.growing, comparison.floor) if comparison else (None, None)
    _line(axes, own.points, pictures.OURS, result.subject.legend)
    points = [*own.points]
    if growing is not None:
        _line(axes, growing.points, pictures.OTHER, "growing KV cache")
        points += growing.points
    if floor is not None:
        pictures.level(axes, floor.p50_ms, "floor", right=True)
    values = [p.p50_ms for p in points]
    pictures.position_axis(axes, [p.position for p in points])
    if max(values) > _LOG_FROM_RATIO * min(values):
        axes.set_yscale("log")
        axes.set_ylim(min([*values, floor.p50_ms if floor else values[0]]) / 1.8, max(values) * 1.8)
        pictures.plain_log_ticks(axes.yaxis, lambda value: number(value, 2))
    else:
        axes.set_ylim(0, max(values) * 1.3)
    axes.set_ylabel("p50 of a step, ms")


def _line(axes: Any, points: list[PositionPoint], color: str, name: str) -> None:
    x, y = [p.position for p in points], [p.p50_ms for p in points]
    axes.plot(x, y, color=color, marker="o", clip_on=False)
    pictures.spots(axes, x, y, [f"{name}, position {count(p.position)}: {ms(p.p50_ms)}" for p in points])
    pictures.label(axes, points[-1].position, points[-1].p50_ms, f"{name}\n{ms(points[-1].p50_ms)}", color)


def _draw_state(own: dict[int, int], growing: dict[int, int], result: BenchResult, figure: Any) -> None:
    """Draw position → bytes of one stream's state, as the contracts define them."""
    axes = figure.add_subplot()
    other = {position: size for position, size in growing.items() if size > 0}
    for line, name, color in (
        (own, result.subject.legend, pictures.OURS),
        (other, "growing KV cache", pictures.OTHER),
    ):
        if line:
            axes.plot(list(line), list(line.values()), color=color, marker="o", clip_on=False)
            texts = [f"{name}, position {count(position)}: {readable_bytes(size)}" for position, size in line.items()]
            pictures.spots(axes, list(line), list(line.values()), texts)
            last, size = list(line.items())[-1]
            pictures.label(axes, last, size, f"{name}\n{readable_bytes(size)}", color)
    sizes = [*own.values(), *other.values()]
    environment = result.get(Environment)
    machine = environment.memory_bytes if environment else 0
    if 0 < machine < max(sizes):
        pictures.level(axes, machine, f"all memory of this machine, {readable_bytes(machine)}")
    pictures.position_axis(axes, [*own, *other])
    if max(sizes) > _LOG_FROM_RATIO * max(1, min(sizes)):
        axes.set_yscale("log", base=2)
        axes.set_ylim(min(sizes) / 4, max(sizes) * 64)
    else:
        axes.set_ylim(0, max(sizes) * 1.4 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: readable_bytes(round(value)))
    axes.set_ylabel("state of one stream")
