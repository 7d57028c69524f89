"""Latency of a step in the main loop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import measure, pictures, statistics
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.statistics import Distribution
from edgemem.bench.subject import Run
from edgemem.bench.table import Card, Picture, Table
from edgemem.bench.words import count, ms, number, percent_name, percentile_rows
from edgemem.wording import counted

_PARTS = 20
_LABEL_SHARE = 0.17
"""Of the width of the plot: labels that are nearer to each other are set one below the other."""


@dataclass(frozen=True)
class Moment:
    """The median of a step at some second of the loop, counting the time of the steps alone."""

    second: float
    p50_ms: float


def moments(samples_ns: NDArray[np.int64]) -> list[Moment]:
    """At most :data:`_PARTS` parts of the steps, each with its median; none has fewer than ten steps."""
    ends = np.cumsum(samples_ns) / 1e9
    parts = np.array_split(np.arange(samples_ns.size), max(1, min(_PARTS, samples_ns.size // 10)))
    return [Moment(round(float(ends[part].mean()), 4), statistics.median_ms(samples_ns[part])) for part in parts]


@dataclass(frozen=True)
class Steps(Section, key="steps", title="Latency of a step", place=10, stage=Stage.STEPS):
    """The loop of ``edgemem run``: one stream, step after step.

    Attributes:
        warmup_steps: Steps made before the first one that counts.
        latency: Of ``stream.step``.
        steps_per_second: Of the whole loop, including the choice of the next input.
        over_time: The median of each part of the steps, to see whether a device that gets warm gets slower.
    """

    warmup_steps: int
    latency: Distribution
    steps_per_second: float
    over_time: list[Moment] = field(default_factory=list)

    @classmethod
    def measure(cls, run: Run) -> Steps:
        plan = run.plan
        measure.run_loop(run.loop, plan.warmup, run.progress, "warm-up")
        samples, seconds = measure.run_loop(run.loop, plan.steps, run.progress, "steps")
        return cls(plan.warmup, statistics.distribution(samples), plan.steps / seconds, moments(samples))

    def tables(self, result: BenchResult) -> list[Table]:
        notes = [
            f"{count(self.latency.count)} steps after {count(self.warmup_steps)} warm-up steps. The whole loop, "
            f"including the choice of the next input, makes {number(self.steps_per_second)} {result.subject.unit}/s."
        ]
        if beyond := self.latency.histogram.beyond:
            notes.append(
                f"The histogram leaves out the {count(beyond)} slowest steps, up to {ms(self.latency.max_ms)}."
            )
        if len(self.over_time) > 1:
            first, last = self.over_time[0], self.over_time[-1]
            notes.append(
                f"A step takes {ms(first.p50_ms)} at the start of the run, and {ms(last.p50_ms)} after "
                f"{number(last.second)} s."
            )
        drift = Picture("Latency of a step over the time of the run", self._draw_over_time, 2.2)
        picture = Picture("Histogram and cumulative distribution of the latency of a step", self._draw, 4.2)
        rows, columns = percentile_rows(self.latency), ("percentile", "latency", "")
        drawn = [picture, drift] if len(self.over_time) > 1 else [picture]
        return [Table(self.key, self.title, columns, rows, ("latency",), notes, drawn)]

    def headline(self, result: BenchResult) -> str:
        p50 = self.latency.percentile_ms(50.0)
        return f"{ms(p50)} a step." if p50 is not None else f"{ms(self.latency.mean_ms)} a step on average."

    def cards(self, result: BenchResult) -> list[Card]:
        p99 = self.latency.percentile_ms(99.0)
        return [
            Card("p50 of a step", ms(self.latency.percentile_ms(50.0)), f"of {count(self.latency.count)} steps"),
            Card("p99 of a step", ms(p99), f"worst {ms(self.latency.max_ms)}" if p99 else "needs more steps"),
            Card(f"{result.subject.unit}/s", number(self.steps_per_second), "the whole loop"),
        ]

    def method(self, result: BenchResult) -> dict[str, str]:
        return {
            "A step": "One call of `stream.step`, the call that `edgemem run` makes. A monotonic clock is read before "
            "and after it, with the garbage collector off. The next input is chosen outside of that time: a token "
            "drawn from the logits, or a row of noise. The rate of the whole loop includes this choice.",
            "Percentiles": "A percentile is shown only if at least ten samples lie beyond it. Otherwise there is a "
            "dash, and the number of samples that it needs.",
        }

    def _draw(self, figure: Any) -> None:
        """Histogram above, cumulative distribution below, with the percentiles marked in both."""
        histogram, ecdf = self.latency.histogram, self.latency.ecdf
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        top.stairs(histogram.counts, histogram.edges_ms, fill=True, color=pictures.FILL)
        top.stairs(histogram.counts, histogram.edges_ms, color=pictures.OURS, linewidth=1.2)
        top.set_ylabel("steps")
        top.set_ylim(0, max(histogram.counts) * 1.35)
        edges = histogram.edges_ms
        columns = top.bar(edges[:-1], top.get_ylim()[1], width=np.diff(edges), align="edge", alpha=0)
        for column, steps, begin, end in zip(columns, histogram.counts, edges[:-1], edges[1:], strict=True):
            pictures.hover(column, f"{ms(begin)} to {ms(end)}: {counted(steps, 'step')}")
        bottom.step(ecdf.values_ms, ecdf.shares, where="post", color=pictures.OURS)
        bottom.set_ylabel("share at or below")
        bottom.set_xlabel("latency of a step, ms")
        bottom.set_ylim(0, 1.03)
        low, high = histogram.edges_ms[0], histogram.edges_ms[-1]
        span = high - low
        top.set_xlim(low - 0.03 * span, high + 0.08 * span)
        top.locator_params(axis="x", nbins=5)
        self._mark_percentiles(top, bottom, low - 0.03 * span, high + 0.08 * span)

    def _draw_over_time(self, figure: Any) -> None:
        axes = figure.add_subplot()
        seconds, p50_ms = [m.second for m in self.over_time], [m.p50_ms for m in self.over_time]
        axes.plot(seconds, p50_ms, color=pictures.OURS, marker="o")
        pictures.spots(axes, seconds, p50_ms, [f"after {number(m.second)} s: {ms(m.p50_ms)}" for m in self.over_time])
        axes.set_ylim(0, max(p50_ms) * 1.3)
        axes.set_xlabel("seconds of the run")
        axes.set_ylabel("p50 of a step, ms")

    def _mark_percentiles(self, top: Any, bottom: Any, low: float, high: float) -> None:
        span = high - low
        previous, level = low - span, 0
        for p in self.latency.percentiles:
            if p.value_ms is None or not low <= p.value_ms <= high:
                continue
            for axes in (top, bottom):
                axes.axvline(p.value_ms, color=pictures.INK, linewidth=0.8, linestyle=(0, (2, 2)))
            level = level + 1 if p.value_ms - previous < _LABEL_SHARE * span else 0
            previous = p.value_ms
            right = p.value_ms > low + 0.9 * span
            top.annotate(
                percent_name(p.percent), (p.value_ms, 1), xycoords=("data", "axes fraction"),
                xytext=(-3 if right else 3, -10 - 12 * level), textcoords="offset points",
                ha="right" if right else "left", color=pictures.INK,
            )  # fmt: skip
