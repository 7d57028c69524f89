"""Optimisation profiles: the shapes that an engine is compiled for, derived from the contract.

Profile 0 takes one time step. Profile 1 takes 1 to ``max_time``; it is absent where a graph takes one step alone. A
graph that takes no single step (the chunk half of a pair) has one profile, with its own range. Batches run from 1 to
``max_batch`` in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgemem.bundle import GraphFile
from edgemem.contract import OUTPUT_INDICES, POSITION, Contract
from edgemem.runtimes.trt.options import BuildOptions

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Smallest, most usual and largest shape of one input."""

    smallest: Shape
    usual: Shape
    largest: Shape

    @property
    def is_fixed(self) -> bool:
        """Whether there is one shape only."""
        return self.smallest == self.largest


Profile = Mapping[str, Range]


def profiles(contract: Contract, graph: GraphFile, options: BuildOptions) -> tuple[Profile, ...]:
    """The profiles of a graph: name of each input → the shapes it may have."""
    times = [(graph.min_time, graph.max_time)]
    if graph.min_time == 1 < graph.max_time:
        times.insert(0, (1, 1))
    return tuple(_profile(contract, *time, options) for time in times)


def profile_for(graph: GraphFile, time: int) -> int:
    """Index of the profile that serves a call of ``time`` steps."""
    return int(graph.min_time == 1 < graph.max_time and time > 1)


def _profile(contract: Contract, min_time: int, max_time: int, options: BuildOptions) -> dict[str, Range]:
    def over(*sizes: int | str) -> Range:
        """A range of shapes ``sizes``, in which ``"batch"``, ``"time"``… stand for what grows."""
        return Range(*(tuple(point[size] if isinstance(size, str) else size for size in sizes) for point in points))

    points = (
        {"batch": 1, "time": min_time, "outputs": 1, "length": 0},
        {"batch": options.max_batch, "time": max_time, "outputs": 1, "length": min(1024, options.max_length)},
        {"batch": options.max_batch, "time": max_time, "outputs": max_time, "length": options.max_length},
    )
    ranges = {contract.input.name: over("batch", "time", *contract.input.shape)}
    if contract.position == "input":
        ranges[POSITION] = over("batch")
    if contract.output_indices:
        ranges[OUTPUT_INDICES] = over("outputs")
    for state in contract:
        sizes = ("length" if size is None else size for size in state.shape)
        ranges[state.input_name] = over("batch", *sizes)
    return ranges
