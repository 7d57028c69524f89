"""Latency of a step in the main loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemem.bench import measure, pictures, statistics
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.statistics import Distribution
from edgemem.bench.subject import Run
from edgemem.bench.table import Card, Picture, Table
from edgemem.bench.words import count, ms, number, percent_name, percentile_rows

_LABEL_SHARE = 0.17
"""Of the width of the plot: labels that are nearer to each other are set one below the other."""


@dataclass(frozen=True)
class Steps(Section, key="steps", title="Latency of a step", place=10, stage=Stage.STEPS):
    """The loop of ``edgemem run``: one stream, step after step.

    Attributes:
        warmup_steps: Steps made before the first one that counts.
        latency: Of ``stream.step``.
        steps_per_second: Of the whole loop, including the choice of the next input.
    """

    warmup_steps: int
    latency: Distribution
    steps_per_second: float

    @classmethod
    def measure(cls, run: Run) -> Steps:
        plan = run.plan
        measure.run_loop(run.loop, plan.warmup, run.progress, "warm-up")
        samples, seconds = measure.run_loop(run.loop, plan.steps, run.progress, "steps")
        return cls(plan.warmup, statistics.distribution(samples), plan.steps / seconds)

    def tables(self, result: BenchResult) -> list[Table]:
        notes = [
            f"{count(self.latency.count)} steps after {count(self.warmup_steps)} warm-up steps. The whole loop, "
            f"including the choice of the next input, makes {number(self.steps_per_second)} {result.subject.unit}/s."
        ]
        if beyond := self.latency.histogram.beyond:
            notes.append(
                f"The histogram leaves out the {count(beyond)} slowest steps, up to {ms(self.latency.max_ms)}."
            )
        picture = Picture("Histogram and cumulative distribution of the latency of a step", self._draw, 4.2)
        rows, columns = percentile_rows(self.latency), ("percentile", "latency", "")
        return [Table(self.key, self.title, columns, rows, ("latency",), notes, [picture])]

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
        bottom.step(ecdf.values_ms, ecdf.shares, where="post", color=pictures.OURS)
        bottom.set_ylabel("share at or below")
        bottom.set_xlabel("latency of a step, ms")
        bottom.set_ylim(0, 1.03)
        low, high = histogram.edges_ms[0], histogram.edges_ms[-1]
        span = high - low
        top.set_xlim(low - 0.03 * span, high + 0.08 * span)
        top.locator_params(axis="x", nbins=5)
        self._mark_percentiles(top, bottom, low - 0.03 * span, high + 0.08 * span)

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
