"""The measuring loops. Every latency is measured by :func:`time_steps`, or by the loop of the deadlines.

``time.perf_counter_ns`` is read before and after one call, into an array that exists already, with the garbage
collector off. Everything that is compared is *interleaved*: in every round each contender has a short turn, in shuffled
order, so a machine that slows down slows all of them down.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgemem.bench.loop import Loop
from edgemem.machine.collector import collector_off

Progress = Callable[[str, int, int], None]
"""Called between timed sections, never inside one: what is being measured, how much of it is done, of how much."""

_BLOCK = 50


def silent(what: str, done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""


def _nothing() -> None:
    pass


def time_steps(
    step: Callable[[], object], out: NDArray[np.int64], after: Callable[[], object] = _nothing
) -> NDArray[np.int64]:
    """Time ``step`` once for each element of ``out``.

    Args:
        step: What is timed.
        out: ``[N]``, filled with nanoseconds.
        after: Called after each step, untimed.

    Returns:
        ``out``.
    """
    clock = time.perf_counter_ns
    with collector_off():
        for i in range(out.size):
            start = clock()
            step()
            out[i] = clock() - start
            after()
    return out


def run_loop(
    loop: Loop, steps: int, progress: Progress = silent, what: str = "steps"
) -> tuple[NDArray[np.int64], float]:
    """Run the loop for ``steps`` steps.

    Returns:
        Latencies of ``stream.step`` ``[steps]`` in nanoseconds, and the seconds of the whole loop, which include the
        choice of the next input.
    """
    samples = np.zeros(steps, dtype=np.int64)
    turns = loop.turns()
    loop_ns = 0
    for begin in range(0, steps, _BLOCK):
        end = min(begin + _BLOCK, steps)
        with collector_off():
            start = time.perf_counter_ns()
            for i in range(begin, end):
                next(turns)
                samples[i] = loop.step_ns
            loop_ns += time.perf_counter_ns() - start
        loop.check()
        progress(what, end, steps)
    return samples, loop_ns / 1e9


def run_for(loop: Loop, seconds: float) -> int:
    """Run the loop for that long.

    Returns:
        The number of steps, at least one.
    """
    turns = loop.turns()
    end = time.perf_counter() + seconds
    steps = 0
    with collector_off():
        while steps == 0 or time.perf_counter() < end:
            next(turns)
            steps += 1
    return steps


@dataclass(frozen=True)
class Contender:
    """One of the loops that are compared.

    Attributes:
        name: Key of its samples.
        step: What is timed.
        prepare: Called before each turn, untimed.
        after: Called after each step, untimed.
    """

    name: str
    step: Callable[[], object]
    prepare: Callable[[], object] = _nothing
    after: Callable[[], object] = _nothing


def interleave(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    steps: int,
    warm: int = 2,
    warm_ms: float = 3.0,
    progress: Progress = silent,
    what: str = "rounds",
) -> dict[str, NDArray[np.int64]]:
    """Measure contenders in turns: each has one turn in every round, in an order that is shuffled for every round.

    Args:
        contenders: At least one; their names differ.
        rounds: Turns of each contender.
        steps: Timed steps of a turn.
        warm: Least number of untimed steps before them: the previous contender has filled the caches.
        warm_ms: Least time of these steps: threads of the previous engine spin for a while after their last step.
        progress: Called after each turn.
        what: What ``progress`` is called with.

    Returns:
        Name → ``[rounds, steps]`` nanoseconds.
    """
    samples = {contender.name: np.zeros((rounds, steps), dtype=np.int64) for contender in contenders}
    if len(samples) != len(contenders):
        raise ValueError(f"two contenders share a name: {[contender.name for contender in contenders]}")
    order = np.random.default_rng(0)
    done = 0
    gc.collect()
    for round_ in range(rounds):
        for index in order.permutation(len(contenders)):
            contender = contenders[index]
            contender.prepare()
            _warm_up(contender, warm, warm_ms)
            time_steps(contender.step, samples[contender.name][round_], contender.after)
            done += 1
            progress(what, done, rounds * len(contenders))
    return samples


def _warm_up(contender: Contender, steps: int, milliseconds: float) -> None:
    end = time.perf_counter_ns() + milliseconds * 1e6
    done = 0
    while done < steps or time.perf_counter_ns() < end:
        contender.step()
        contender.after()
        done += 1
