"""What users write around a graph by hand: frames cut and transformed by numpy, results added where they overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.bundle import GraphFile
from edgemem.contract import BackEnd, Contract, InputSpec, Sizes, Stft
from edgemem.runtimes.stft import overlap, window

Array = NDArray[Any]


class HandEnds:
    """One stream of frames, as a user's numpy code makes them.

    Args:
        contract: What the graph takes and gives.
        graph: A graph that takes one step.
    """

    def __init__(self, contract: Contract, graph: GraphFile) -> None:
        self._contract = contract
        self._shapes = {tensor.name: tensor.shape(Sizes()) for tensor in contract.inputs(graph)}
        self._before = {
            spec.name: np.zeros((spec.context, *spec.shape), spec.dtype)
            if not isinstance(spec.front_end, Stft)
            else np.zeros(spec.front_end.overlap, np.float32)
            for spec in contract.data
        }
        self._tails = {s.name: np.zeros(s.back_end.overlap, np.float32) for s in contract.output_specs if s.back_end}

    def given(self, items: Any) -> dict[str, Array]:
        """What the graph is given for the new items of a step: of one input, or of several by name."""
        named = items if isinstance(items, Mapping) else {self._contract.input.name: items}
        return {s.name: self._placed(s, self._framed(s, np.asarray(named[s.name]))) for s in self._contract.data}

    def _placed(self, spec: InputSpec, items: Array) -> Array:
        """Items ``[N, *shape]`` with the axes where the graph has them."""
        time, batch = spec.time_axis, spec.batch_axis
        if len(items) > 1 and time is not None and (place := time - (batch is not None and batch < time)):
            items = np.moveaxis(items, 0, place)
        return items.reshape(self._shapes[spec.name])

    def made(self, name: str, value: Array) -> Array:
        """What the host gets of an output: samples, where frames overlap."""
        end = next(spec.back_end for spec in self._contract.output_specs if spec.name == name)
        return value if end is None else self._added(name, end, value)

    def _framed(self, spec: InputSpec, items: Array) -> Array:
        before = self._before[spec.name]
        if not len(before):
            return items
        frame = np.concatenate([before, items])
        self._before[spec.name] = frame[len(frame) - len(before) :]
        if not isinstance(spec.front_end, Stft):
            return frame
        spectrum = np.fft.rfft(frame * window(spec.front_end))
        return np.stack([spectrum.real, spectrum.imag], axis=-1).astype(np.float32)[None]

    def _added(self, name: str, end: BackEnd, value: Array) -> Array:
        frame = value.reshape(end.shape)
        if isinstance(end, Stft):
            frame = np.fft.irfft(frame[:, 0] + 1j * frame[:, 1], end.n_fft).astype(np.float32) * window(end)
        tail = self._tails[name]
        frame[: len(tail)] += tail
        self._tails[name] = frame[end.hop :]
        return frame[: end.hop] / overlap(end) if isinstance(end, Stft) else frame[: end.hop]
