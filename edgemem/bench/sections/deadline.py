"""A loop at the rate of a clock, as a device with a sensor runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgemem.bench import statistics
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.statistics import Distribution
from edgemem.bench.subject import Run
from edgemem.bench.table import Card, Table
from edgemem.bench.words import count, ms, number, percentile_rows
from edgemem.machine.collector import collector_off

_FEWEST_STEPS = 20


@dataclass(frozen=True)
class Deadline(Section, key="deadline", title="Deadlines", place=50, stage=Stage.ALONE, on_request=True):
    """A paced loop: step i is released at i / rate and must be done before the next release.

    Attributes:
        rate_hz: Releases per second.
        steps: Number of steps.
        misses: Steps done after their deadline.
        worst_lateness_ms: How long after its deadline the latest step was done; 0 without a miss.
        response: Time from the release to the end of the step; it includes the wake-up by the operating system.
    """

    rate_hz: float
    steps: int
    misses: int
    worst_lateness_ms: float
    response: Distribution

    @classmethod
    def measure(cls, run: Run) -> Deadline | None:
        rate_hz, loop = run.options.rate_hz, run.loop
        if rate_hz is None:
            return None
        run.progress("paced loop", 0, 1)
        made = pace(loop.step, loop.choose, rate_hz, max(_FEWEST_STEPS, round(rate_hz * run.plan.paced_seconds)))
        loop.check()
        run.progress("paced loop", 1, 1)
        return made

    def tables(self, result: BenchResult) -> list[Table]:
        rows: list[tuple[str, ...]] = [
            ("misses", count(self.misses), f"of {count(self.steps)} steps"),
            ("worst lateness", ms(self.worst_lateness_ms), "after the deadline"),
            *((f"response {name}", value, note) for name, value, note in percentile_rows(self.response)),
        ]
        note = (
            "The response time runs from the tick of the clock until the next input is chosen. It includes the wake-up "
            "by the operating system."
        )
        title = f"Deadlines at {number(self.rate_hz)} Hz"
        return [Table(self.key, title, ("what", "figure", ""), rows, ("figure",), [note])]

    def cards(self, result: BenchResult) -> list[Card]:
        at = f"at {number(self.rate_hz)} Hz, of {count(self.steps)} steps"
        return [Card("missed deadlines", count(self.misses), at)]

    def method(self, result: BenchResult) -> dict[str, str]:
        return {
            "Deadlines": "A step starts at each tick and must be done, with the next input chosen, before the next "
            "tick. A late step does not move the later ticks."
        }


def pace(
    step: Callable[[], object],
    after: Callable[[], object],
    rate_hz: float,
    steps: int,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Deadline:
    """Make a step at each tick of a clock.

    Step i is released at ``start + i / rate`` and must be done before release i + 1, with the next input chosen. A late
    step does not move the later releases: they follow at once until the loop has caught up.

    Args:
        step: The step.
        after: Chooses the next input; it counts against the deadline.
        rate_hz: Ticks per second.
        steps: Number of ticks.
        clock: Nanoseconds.
        sleep: Seconds.
    """
    period_ns = round(1e9 / rate_hz)
    response = np.zeros(steps, dtype=np.int64)
    with collector_off():
        start = clock()
        for i in range(steps):
            release = start + i * period_ns
            while (wait := release - clock()) > 0:
                sleep(wait / 1e9)
            step()
            after()
            response[i] = clock() - release
    late = response - period_ns
    return Deadline(
        rate_hz=rate_hz,
        steps=steps,
        misses=int((late > 0).sum()),
        worst_lateness_ms=max(0.0, float(late.max()) / 1e6),
        response=statistics.distribution(response),
    )
