"""The measuring loops. Every figure of the benchmark comes from :func:`time_steps` or :func:`pace`.

Timing is by ``time.perf_counter_ns`` around one call, into an array that was there before, with the garbage collector
off. Whatever is compared is *interleaved*: every contender has a short turn in every round, in shuffled order, so that
a machine that slows down slows all of them down.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import statistics
from edgemem.bench.result import Deadline, IdleGap, PositionPoint, Sweep
from edgemem.contract import POSITION, Contract
from edgemem.errors import NonFiniteError
from edgemem.runtimes import Stream
from edgemem.text.sampling import Sampler

Progress = Callable[[str, int, int], None]
"""Called between timed sections, never inside one: what is being measured, how much is done, of how much."""

_ROWS = 256
_BLOCK = 50


def silent(what: str, done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""


def _nothing() -> None:
    pass


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """No garbage collection inside the block."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Inputs:
    """Chooses each step's input as ``edgemem run`` does: a token drawn from the logits, or the next row of features.

    The draws and the features (standard normal noise) come from fixed seeds. A step's cost does not depend on them.
    """

    def __init__(self, contract: Contract) -> None:
        spec = contract.input
        rng = np.random.default_rng(0)
        self._rows: NDArray[Any]
        if spec.vocab_size is None:
            noise = rng.standard_normal((_ROWS, *spec.shape), dtype=np.float32)
            self._rows = noise if spec.dtype == "bfloat16" else noise.astype(spec.dtype)
        else:
            self._rows = rng.integers(0, spec.vocab_size, _ROWS, dtype=np.int64)
        # A model whose output is not one score for each token is fed random tokens.
        has_logits = spec.is_tokens and contract.output.shape == (spec.vocab_size,)
        self._sampler = Sampler(seed=0) if has_logits else None
        self._next = 0

    def first(self) -> Any:
        """The input of the first step: a token id, or features ``[F]``."""
        row = self._rows[self._next]
        self._next = (self._next + 1) % _ROWS
        return row if row.ndim else int(row)

    def after(self, output: NDArray[Any]) -> Any:
        """The input that follows ``output`` (``[1, *output.shape]``)."""
        return self.first() if self._sampler is None else self._sampler(output[0])

    def sequence(self, length: int) -> NDArray[Any]:
        """A long input: tokens ``[T]`` or features ``[T, F]``."""
        return np.take(self._rows, np.arange(length) % _ROWS, axis=0)


class Loop:
    """The loop of ``edgemem run`` on one stream: :meth:`step`, :meth:`choose`, :meth:`step`, …

    Attributes:
        output: The last output ``[1, *output.shape]``; ``None`` before the first step.
    """

    def __init__(self, stream: Stream, contract: Contract) -> None:
        self.stream = stream
        self.inputs = Inputs(contract)
        self._limit = contract.max_position
        self._x = self.inputs.first()
        self.output: NDArray[Any] | None = None

    def step(self) -> None:
        """``stream.step`` and nothing else: this is what is timed."""
        self.output = self.stream.step(self._x)

    def choose(self) -> None:
        """Choose the next input from the last output; a stream that has come to its model's end begins again."""
        if self.output is not None:
            self._x = self.inputs.after(self.output)
        if self._limit is not None and self.stream.position >= self._limit:
            self.stream.reset()

    def check(self) -> None:
        """Refuse to measure nonsense.

        Raises:
            NonFiniteError: The last output holds NaN or infinity.
        """
        if self.output is not None and not np.isfinite(self.output).all():
            raise NonFiniteError(
                f"by position {self.stream.position} the model puts out NaN or infinity: its latency means nothing.",
                hint="See which step it begins at with: edgemem check",
            )


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
        Latencies of ``stream.step`` ``[steps]`` in nanoseconds, and the seconds that the whole loop took, choosing the
        next input included.
    """
    samples = np.zeros(steps, dtype=np.int64)
    loop_ns = 0
    for begin in range(0, steps, _BLOCK):
        start = time.perf_counter_ns()
        time_steps(loop.step, samples[begin : begin + _BLOCK], loop.choose)
        loop_ns += time.perf_counter_ns() - start
        loop.check()
        progress(what, min(begin + _BLOCK, steps), steps)
    return samples, loop_ns / 1e9


def run_for(loop: Loop, seconds: float) -> int:
    """Run the loop for that long, nothing timed in it.

    Returns:
        The steps taken, one at least.
    """
    end = time.perf_counter() + seconds
    steps = 0
    with collector_off():
        while steps == 0 or time.perf_counter() < end:
            loop.step()
            loop.choose()
            steps += 1
    return steps


@dataclass(frozen=True)
class Contender:
    """One of the things that are measured against each other.

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
    """Measure contenders in turns, every one in every round, in an order shuffled anew each round.

    Args:
        contenders: At least one; names differ.
        rounds: How often each has its turn.
        steps: Timed steps of a turn.
        warm: Fewest untimed steps before them: the contender before has emptied the caches.
        warm_ms: Shortest time of these steps: an engine's threads spin on for a while after their last step.
        progress: Told after each turn.
        what: What ``progress`` is told.

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


def state_at(contract: Contract, state: dict[str, NDArray[Any]], position: int) -> dict[str, NDArray[Any]]:
    """The state of a stream, altered as if it stood at ``position``.

    Args:
        contract: The states.
        state: A state that the model reached itself, by name, ``[B, *shape]``.
        position: Where the stream is to stand. A growing state gets this length: what is there, repeated; a state
            named ``position`` (sealed graphs) is set to it; every other one stays.
    """
    moved = dict(state)
    for spec in contract:
        value = state[spec.name]
        if spec.growing_axis is not None:
            axis = spec.growing_axis + 1
            if position and not value.shape[axis]:
                raise ValueError(f"state {spec.name!r} is empty: nothing to repeat")
            moved[spec.name] = np.take(value, np.arange(position) % max(1, value.shape[axis]), axis=axis)
        elif spec.name == POSITION and spec.dtype == "int64":
            moved[spec.name] = np.full_like(value, position)
    return moved


def sweep_contenders(
    name: str, loop: Loop, contract: Contract, positions: Sequence[int], seed_steps: int
) -> list[Contender]:
    """One contender for each position, all of them the same loop with the state injected before each turn.

    One stream serves them all, so its buffers lie at the same addresses whatever the position.

    Args:
        name: Contenders are called ``name@position``.
        loop: The stream and its inputs.
        contract: The stream's.
        positions: Where to measure.
        seed_steps: Steps made first, so that the injected state is one that the model reached itself.
    """
    loop.stream.reset()
    for _ in range(seed_steps):
        loop.step()
        loop.choose()
    loop.check()
    reached = loop.stream.state()

    def prepare(position: int) -> Callable[[], object]:
        if position == 0:
            return loop.stream.reset
        rows = np.full(loop.stream.batch, position, dtype=np.int64)

        def inject() -> None:
            loop.stream.load_state(state_at(contract, reached, position), rows)

        return inject

    return [Contender(f"{name}@{p}", loop.step, prepare(p), loop.choose) for p in positions]


def sweep_of(name: str, samples: dict[str, NDArray[np.int64]], contract: Contract, positions: Sequence[int]) -> Sweep:
    """The sweep that :func:`sweep_contenders` measured."""
    by_position = {p: samples[f"{name}@{p}"] for p in sorted(positions)}
    beyond_zero = [p for p in by_position if p > 0]
    return Sweep(
        points=[
            PositionPoint(p, float(np.median(ns)) / 1e6, int(ns.size), contract.state_bytes_at(p))
            for p, ns in by_position.items()
        ],
        slope_ns_per_1000_positions=statistics.slope_per_1000(by_position),
        last_over_first=statistics.ratio(by_position[beyond_zero[-1]], by_position[beyond_zero[0]]),
    )


def prefill(
    loop: Loop, length: int, rounds: int, steps: int, progress: Progress = silent
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Feed a long input, and in the same rounds take steps one by one.

    Args:
        loop: The stream, which is reset before each turn.
        length: Time steps of the long input.
        rounds: How often it is fed.
        steps: Single steps timed in a turn.
        progress: Told after each turn.

    Returns:
        Nanoseconds for the whole input ``[rounds, 1]``, and for single steps ``[rounds, steps]``.
    """
    inputs = loop.inputs.sequence(length)
    stream = loop.stream
    fed = np.zeros((rounds, 1), dtype=np.int64)
    stepped = np.zeros((rounds, steps), dtype=np.int64)
    stream.reset()
    stream.feed(inputs[: 2 * _BLOCK])
    for round_ in range(rounds):
        stream.reset()
        time_steps(lambda: stream.feed(inputs), fed[round_])
        loop.check()
        stream.reset()
        time_steps(loop.step, stepped[round_], loop.choose)
        progress("prefill", round_ + 1, rounds)
    return fed, stepped


def pace(
    step: Callable[[], object],
    after: Callable[[], object],
    rate_hz: float,
    steps: int,
    *,
    clock: Callable[[], int] = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Deadline:
    """Run a step at each tick of a clock, as a device with a sensor does.

    Step i is released at ``start + i / rate`` and must be done (its output chosen from) before release i + 1. A late
    step does not move the later releases: they follow at once until the loop has caught up.

    Args:
        step: The step.
        after: What else belongs to the loop: choosing the next input.
        rate_hz: Ticks per second.
        steps: How many ticks.
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


def idle_gaps(
    loop: Loop, gap_ms: float, steps: int, progress: Progress = silent, sleep: Callable[[float], None] = time.sleep
) -> IdleGap:
    """Time steps that each follow a pause.

    Args:
        loop: The stream and its inputs.
        gap_ms: The pause.
        steps: How many.
        progress: Told after each step.
        sleep: Seconds.
    """
    samples = np.zeros(steps, dtype=np.int64)
    for i in range(steps):
        sleep(gap_ms / 1e3)
        time_steps(loop.step, samples[i : i + 1], loop.choose)
        progress("idle gaps", i + 1, steps)
    return IdleGap(gap_ms, statistics.distribution(samples))
