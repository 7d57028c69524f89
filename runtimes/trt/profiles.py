"""Optimisation profiles: the shapes that an engine is compiled for, derived from the contract.

Profile 0 takes one time step. Profile 1 takes 1 to ``max_time``; it is absent where a graph takes one step alone. A
graph that takes no single step (the chunk half of a pair) has one profile, with its own range. Batches run from 1 to
``max_batch`` in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgemem.bundle import GraphFile
from edgemem.contract import Contract, Sizes
from edgemem.runtimes.trt.options import BuildOptions

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """Smallest, most usual and largest shape of one input."""

    smallest: Shape
    usual: Shape
    largest: Shape


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
    batch = options.max_batch
    smallest = Sizes(time=min_time)
    usual = Sizes(batch, max_time, selected=1, length=min(1024, options.max_length))
    largest = Sizes(batch, max_time, selected=max_time, length=options.max_length)
    return {
        tensor.name: Range(tensor.shape(smallest), tensor.shape(usual), tensor.shape(largest))
        for tensor in contract.inputs(GraphFile("", min_time, max_time))
    }
