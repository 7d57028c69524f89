"""A long input in one call of ``stream.feed``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import statistics
from edgemem.bench.loop import Loop, new_stream
from edgemem.bench.measure import Progress, silent, time_steps
from edgemem.bench.result import BenchResult, NotMeasured, Section, Stage
from edgemem.bench.statistics import Interval
from edgemem.bench.subject import Run
from edgemem.bench.table import Card, Table
from edgemem.bench.words import bounds, count, ms, number, times
from edgemem.runtimes import Session

_WARM_UP = 100


@dataclass(frozen=True)
class Prefill(Section, key="prefill", title="Prefill", place=40, stage=Stage.ALONE, gives_reason=True):
    """``stream.feed`` of a long input, of which only the last output is computed.

    Attributes:
        length: Time steps of the input.
        chunk: Most time steps that the bundle takes in one call.
        p50_ms: Median time of the whole input.
        steps_per_second: Time steps of the input in a second.
        speedup: How many times faster this is than single steps.
    """

    length: int
    chunk: int
    p50_ms: float
    steps_per_second: float
    speedup: Interval

    @classmethod
    def measure(cls, run: Run) -> Prefill | NotMeasured:
        if run.session.max_time == 1:
            return NotMeasured("the bundle takes one time step a call")
        plan = run.plan
        return cls.of(run.session, plan.prefill, plan.prefill_rounds, 2 * plan.turn, run.progress)

    @classmethod
    def of(cls, session: Session, length: int, rounds: int, steps: int, progress: Progress = silent) -> Prefill:
        """Measure a long input against single steps.

        Args:
            session: The model.
            length: Time steps of the input.
            rounds: How often it is fed.
            steps: Single steps that are timed in each round.
            progress: Called after each round.
        """
        fed, stepped = feed_and_step(Loop(new_stream(session), session.contract), length, rounds, steps, progress)
        p50_ms = statistics.median_ms(fed)
        return cls(length, session.max_time, p50_ms, length / p50_ms * 1e3, statistics.ratio(stepped * length, fed))

    def tables(self, result: BenchResult) -> list[Table]:
        unit = result.subject.unit
        rows: list[tuple[str, ...]] = [
            ("input", f"{count(self.length)} {unit}", ""),
            ("time", ms(self.p50_ms), "median"),
            ("throughput", f"{number(self.steps_per_second)} {unit}/s", ""),
            ("speedup over single steps", times(self.speedup), bounds(self.speedup)),
        ]
        note = f"By stream.feed, at most {count(self.chunk)} time steps a call; only the last output is computed."
        return [Table(self.key, self.title, ("what", "figure", ""), rows, ("figure",), [note])]

    def cards(self, result: BenchResult) -> list[Card]:
        unit = result.subject.unit
        return [Card(f"prefill, {unit}/s", number(self.steps_per_second), f"of {count(self.length)} {unit}")]


def feed_and_step(
    loop: Loop, length: int, rounds: int, steps: int, progress: Progress = silent
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Feed a long input, and make single steps in the same rounds.

    Args:
        loop: The stream, which is reset before each turn.
        length: Time steps of the long input.
        rounds: How often it is fed.
        steps: Single steps that are timed in a turn.
        progress: Called after each round.

    Returns:
        Nanoseconds of the whole input ``[rounds, 1]``, and of single steps ``[rounds, steps]``.
    """
    inputs = loop.inputs.sequence(length)
    stream = loop.stream
    fed = np.zeros((rounds, 1), dtype=np.int64)
    stepped = np.zeros((rounds, steps), dtype=np.int64)
    stream.reset()
    stream.feed(loop.inputs.sequence(min(_WARM_UP, length)))
    for round_ in range(rounds):
        stream.reset()
        time_steps(lambda: stream.feed(inputs), fed[round_])
        loop.check()
        stream.reset()
        time_steps(loop.step, stepped[round_], loop.choose)
        progress("prefill", round_ + 1, rounds)
    return fed, stepped
