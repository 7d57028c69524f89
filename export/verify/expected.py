"""A source's own outputs over whole sequences, which a bundle is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from edgemem.contract import Contract
from edgemem.export.sources import Source
from edgemem.export.verify.sequences import Sequences, by_step
from edgemem.measure import Array
from edgemem.runtimes import Session

_COMPARED_BYTES = 256 << 20
"""Outputs of a whole sequence that are held in memory to compare with; those of a large vocabulary are thinned out."""


@dataclass(frozen=True)
class Expected:
    """A source's outputs at some steps of a whole sequence.

    Attributes:
        steps: The steps, in order, int64 ``[S]``.
        outputs: Every output by name, ``[B, S, items, *item_shape]``.
    """

    steps: Array
    outputs: dict[str, Array]

    @classmethod
    def of(cls, source: Source, given: Sequences) -> Expected:
        """The outputs for sequences from position 0, at :func:`compared_steps`."""
        return cls.at(source, given, compared_steps(source.contract, given.batch, given.steps))

    @classmethod
    def at(cls, source: Source, given: Sequences, steps: Array) -> Expected:
        """The same at steps that are given.

        One stream after the other: what a whole sequence takes is never held twice, and no stream can see another.
        """
        with torch.inference_mode():
            rows = [source.full_sequence(given.row(index), steps) for index in range(given.batch)]
        return cls(steps, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})

    def within(self, start: int, size: int) -> slice:
        """Which of the steps lie in a call of ``size`` steps from ``start`` on."""
        first, end = np.searchsorted(self.steps, (start, start + size))
        return slice(int(first), int(end))

    def streamed(self, session: Session, given: Sequences) -> dict[str, Array]:
        """What a bundle gives for the same sequences at the same steps, fed in calls as long as they go."""
        got = {name: np.empty_like(value) for name, value in self.outputs.items()}
        stream = session.stream(given.batch, held=given.held)
        done = 0
        for size in cut(given.steps, lambda: session.max_time):
            here = self.within(done, size)
            part = stream.feed(given.between(done, done + size), outputs="all")
            for name, value in by_step(session.contract, part, size).items():
                got[name][:, here] = value[:, self.steps[here] - done]
            done += size
        return got


def recorded(source: Source, steps: int = 256, batch: int = 2, seed: int = 0) -> dict[str, Array]:
    """Random inputs and the outputs of a source in float32, by name; see :mod:`edgemem.runtimes.recorded`."""
    contract = source.contract
    steps = min(steps, contract.max_position or steps)
    given = Sequences.random(contract, batch if contract.has_batches else 1, steps, seed)
    outputs = Expected.at(source.in_float32(), given, np.arange(steps)).outputs
    items = {name: value.reshape(len(value), -1, *value.shape[3:]) for name, value in outputs.items()}
    return {**given.data, **given.held, **items}


def compared_steps(contract: Contract, batch: int, steps: int) -> Array:
    """The steps whose outputs are compared, int64 ``[S]``: all, or as many as fit in memory, first and last too."""
    values = sum(spec.step_items * math.prod(spec.item_shape) for spec in contract.output_specs)
    most = _COMPARED_BYTES // (4 * batch * values)
    return np.unique(np.linspace(0, steps - 1, min(steps, max(most, 64))).astype(np.int64))


def cut(steps: int, size: Callable[[], int]) -> list[int]:
    """Calls of ``size()`` steps each, of ``steps`` in all."""
    sizes: list[int] = []
    while (left := steps - sum(sizes)) > 0:
        sizes.append(min(left, size()))
    return sizes
