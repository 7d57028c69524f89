"""Latency against position: a stream at any position of a long run, with a state that the model reached itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import statistics
from edgemem.bench.loop import Loop
from edgemem.bench.measure import Contender
from edgemem.bench.statistics import Interval
from edgemem.bench.table import Table
from edgemem.bench.words import bounds, count, ms, number
from edgemem.contract import POSITION, Contract
from edgemem.wording import counted

_UNITS = (("ms", 1e6), ("µs", 1e3), ("ns", 1.0))


@dataclass(frozen=True)
class PositionPoint:
    """A step at one position of the stream."""

    position: int
    p50_ms: float
    samples: int
    state_bytes: int


@dataclass(frozen=True)
class Sweep:
    """Latency and memory against the position of the stream.

    Attributes:
        points: By position.
        slope_ns_per_1000_positions: Growth of the latency of a step.
        last_over_first: Latency at the last position over that at the first one after 0.
    """

    points: list[PositionPoint]
    slope_ns_per_1000_positions: Interval
    last_over_first: Interval

    def table(self, key: str, title: str) -> Table:
        """The points, with a sentence about the slope."""
        columns = ("position", "p50", "samples")
        rows: list[tuple[str, ...]] = [(count(p.position), ms(p.p50_ms), count(p.samples)) for p in self.points]
        return Table(key, title, columns, rows, columns, [self.slope_sentence()])

    def slope_sentence(self) -> str:
        """Whether the latency of a step grows with the position."""
        slope_ns = self.slope_ns_per_1000_positions
        unit, size = next((unit, size) for unit, size in _UNITS if size == 1.0 or abs(slope_ns.value) >= size)
        slope = slope_ns.over(size)
        value = f"Slope: {number(slope.value)} {unit} per 1,000 positions"
        if slope.low is None or slope.high is None:
            return f"{value}. There is no interval after {counted(slope.rounds, 'round')}."
        value += f" ({bounds(slope)}, {slope.rounds} rounds)."
        if slope.low > 0:
            return f"{value} Steps get slower as the stream goes on."
        if slope.high < 0:
            return f"{value} Steps do not get slower as the stream goes on."
        return f"{value} Steps do not get measurably slower as the stream goes on."


def steps_to_fill(contract: Contract) -> int:
    """Steps after which every ring has wrapped, as in a long stream.

    The rings of a model with a longest position never wrap: they are filled almost to their end.
    """
    steps = 16 + max((state.window or 0 for state in contract), default=0)
    return steps if contract.max_position is None else min(steps, contract.max_position - 1)


def state_at(contract: Contract, state: dict[str, NDArray[Any]], position: int) -> dict[str, NDArray[Any]]:
    """The state of a stream, changed as if the stream were at ``position``.

    Args:
        contract: The states.
        state: A state that the model reached itself, by name, ``[B, *shape]``.
        position: The position. A growing state is repeated to this length; a state named ``position`` (sealed graphs)
            is set to it; all others stay as they are.
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
    """One contender for each position: the same loop, with the state injected before each turn.

    All use one stream, so its buffers are at the same addresses at every position.

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


def sweep_of(
    name: str, samples: Mapping[str, NDArray[np.int64]], contract: Contract, positions: Sequence[int]
) -> Sweep:
    """The sweep that :func:`sweep_contenders` measured.

    Args:
        name: As there.
        samples: What :func:`~edgemem.bench.measure.interleave` measured.
        contract: As there.
        positions: As there, at least two.
    """
    by_position = {p: samples[f"{name}@{p}"] for p in sorted(positions)}
    beyond_zero = [p for p in by_position if p > 0]
    return Sweep(
        points=[
            PositionPoint(p, statistics.median_ms(ns), int(ns.size), contract.state_bytes_at(p))
            for p, ns in by_position.items()
        ],
        slope_ns_per_1000_positions=statistics.slope_per_1000(by_position),
        last_over_first=statistics.ratio(by_position[beyond_zero[-1]], by_position[beyond_zero[0]]),
    )
