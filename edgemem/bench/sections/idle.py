"""Latency of a step after a pause."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgemem.bench import statistics
from edgemem.bench.loop import Loop
from edgemem.bench.measure import Progress, silent, time_steps
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.statistics import Distribution
from edgemem.bench.subject import Run
from edgemem.bench.table import Table
from edgemem.bench.words import count, number, percentile_rows


@dataclass(frozen=True)
class IdleGap(Section, key="idle", title="Latency after a pause", place=60, stage=Stage.ALONE, on_request=True):
    """Latency of a step after ``gap_ms`` of sleep, when clocks have fallen and caches are cold."""

    gap_ms: float
    latency: Distribution

    @classmethod
    def measure(cls, run: Run) -> IdleGap | None:
        gap_ms = run.options.idle_gap_ms
        return None if gap_ms is None else idle_gaps(run.loop, gap_ms, run.plan.idle_steps, run.progress)

    def tables(self, result: BenchResult) -> list[Table]:
        title, columns = f"{self.title} of {number(self.gap_ms)} ms", ("percentile", "latency", "")
        notes = [f"{count(self.latency.count)} steps, each after a pause."]
        return [Table(self.key, title, columns, percentile_rows(self.latency), ("latency",), notes)]


def idle_gaps(
    loop: Loop, gap_ms: float, steps: int, progress: Progress = silent, sleep: Callable[[float], None] = time.sleep
) -> IdleGap:
    """Time steps that each follow a pause.

    Args:
        loop: The stream and its inputs.
        gap_ms: Length of the pause.
        steps: Number of steps.
        progress: Called after each step.
        sleep: Seconds.
    """
    samples = np.zeros(steps, dtype=np.int64)
    for i in range(steps):
        sleep(gap_ms / 1e3)
        time_steps(loop.step, samples[i : i + 1], loop.choose)
        progress("idle gaps", i + 1, steps)
    return IdleGap(gap_ms, statistics.distribution(samples))
