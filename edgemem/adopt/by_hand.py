"""The loop that a user writes around the original file: frames cut with numpy, outputs fed back as inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.adopt.subject import Subject
from edgemem.adopt.tensors import DataInput, random_values
from edgemem.bundle import GraphFile
from edgemem.contract import BackEnd, Contract, InputSpec
from edgemem.contract.items import items_of_steps
from edgemem.runtimes.stft import to_frames, to_samples

Array = NDArray[Any]


class ByHand:
    """A stream of the original graph.

    Args:
        subject: The original, its states paired.
        contract: How its items are shaped for the host.
        held: Inputs that hold for the whole stream, ``[B, ...]``.
        batch: Streams.
    """

    def __init__(self, subject: Subject, contract: Contract, held: Mapping[str, Array], batch: int = 1) -> None:
        self._subject, self._contract, self._batch = subject, contract, batch
        self._held = {spec.name: to_graph(spec, held[spec.name][:, None]) for spec in contract.held}
        self._states = subject.first_states(batch)
        self._before: dict[str, Array] = {}
        self._tails: dict[str, Array] = {}
        self._outputs = contract.outputs(GraphFile("", 1, 1))

    def step(self, items: Mapping[str, Array], time: int = 1) -> dict[str, Array]:
        """Advance by ``time`` steps in one call.

        Args:
            items: Of every data input, ``[B, time * step_items, *item_shape]``.
            time: Steps.

        Returns:
            Every result, ``[B, items, *item_shape]``.
        """
        inputs = zip(self._subject.data, self._contract.data, strict=True)
        data = {d.name: self.framed(d, spec, items[d.name]) for d, spec in inputs}
        outputs = self._subject.call(data, self._held, self._states)
        self._states = self._subject.next_states(outputs)
        found = {}
        for tensor, spec in zip(self._outputs, self._contract.output_specs, strict=False):
            value = tensor.leading(outputs[spec.name])
            found[spec.name] = self._added(spec.name, spec.back_end, value) if spec.back_end else value
        return found

    def framed(self, data: DataInput, spec: InputSpec, items: Array) -> Array:
        """What the graph is given for new items of one input: with what was before them, or transformed."""
        if data.stft is not None:
            tail = self._before.get(data.name, np.zeros((self._batch, data.stft.overlap), np.float32))
            items, self._before[data.name] = to_frames(data.stft, tail, items)
        elif data.context:
            zeros = np.zeros((self._batch, data.context, *spec.shape), items.dtype)
            items = np.concatenate([self._before.get(data.name, zeros), items], axis=1)
            self._before[data.name] = items[:, -data.context :]
        return to_graph(spec, items)

    def _added(self, name: str, end: BackEnd, frames: Array) -> Array:
        tail = self._tails.get(name, np.zeros((self._batch, end.overlap), np.float32))
        samples, self._tails[name] = to_samples(end, tail, frames)
        return samples


def to_graph(spec: InputSpec, items: Array) -> Array:
    """Items ``[B, N, *shape]`` with their axes where the graph has them."""
    axes = [spec.batch_axis, spec.time_axis]
    for at, axis in reversed(list(enumerate(axes))):
        if axis is None:
            items = items[(slice(None),) * at + (0,)]
    named = [axis for axis in axes if axis is not None]
    order: list[int] = []
    rest = iter(range(len(named), items.ndim))
    for place in range(items.ndim):
        order.append(named.index(place) if place in named else next(rest))
    return np.ascontiguousarray(items.transpose(order))


def random_stream(contract: Contract, subject: Subject, steps: int, batch: int = 1, seed: int = 3) -> dict[str, Array]:
    """Items for ``steps`` steps of every data input as a host gives them, and every held input ``[B, ...]``."""
    generator = np.random.default_rng(seed)
    found = {s.name: generator.standard_normal((batch, *s.shape)).astype(s.dtype) for s in contract.held}
    for data, spec in zip(subject.data, contract.data, strict=True):
        shape = (batch, steps * spec.step_items, *spec.item_shape)
        found[spec.name] = random_values(data.tensor, shape, generator)
    return found


def hand_stream(
    subject: Subject, contract: Contract, items: Mapping[str, Array], steps: int, call: int
) -> dict[str, Array]:
    """Every result of a stream by hand, fed with such items in calls of ``call`` steps."""
    hand, parts = ByHand(subject, contract, items, len(items[contract.input.name])), []
    for at in range(0, steps, call):
        parts.append(hand.step(items_of_steps(contract, items, at, at + call), call))
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
