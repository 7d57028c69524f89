"""The two ends of one step, in place: what lies between the host's items and the graph's, where arrays stay put.

Chunks take the general way through :mod:`edgemem.runtimes.buffers`; this computes the same numbers for a single step,
without allocating. A run of the engine drives the host's code out of the caches, so few operations are left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemem.contract import BackEnd, Contract, Framing, InputSpec, OutputSpec, Stft
from edgemem.runtimes.buffers import Buffers
from edgemem.runtimes.inputs import named, step_array, step_reader
from edgemem.runtimes.lane import Lane
from edgemem.runtimes.memory import Array
from edgemem.runtimes.on_nan import NanPolicy, step_check
from edgemem.runtimes.stft import overlap, window


class StepEnds:
    """The ends of the steps of one lane.

    Args:
        contract: The contract; see :func:`step_ends`.
        lane: The lane.
        policy: What happens to data that are not finite.
    """

    def __init__(self, contract: Contract, lane: Lane, policy: NanPolicy) -> None:
        self._lane, self._buffers, self._batch = lane, lane.buffers, lane.positions.size
        self._specs = contract.data
        inputs, outputs = lane.arena.step_inputs, lane.arena.step_outputs
        self._fronts = {spec.name: _front(spec, inputs[spec.name], lane.buffers) for spec in contract.data}
        self._backs = {spec.name: _back(spec, outputs[spec.name], lane.buffers) for spec in contract.output_specs}
        self._checks = [step_check(spec, self._fronts[spec.name].checked) for spec in policy.checked]
        self._after = [front.keep for front in self._fronts.values() if front.keeps]
        self._after += [back.give for back in self._backs.values() if isinstance(back, _Overlapping)]
        self._read, self._front = step_reader(contract.input, self._batch), self._fronts[contract.input.name]
        found = {spec.name: (back.out[:, 0] if spec.step_items == 1 else back.out)
                 for spec, back in zip(contract.output_specs, self._backs.values(), strict=True)}  # fmt: skip
        self._result: Any = found[contract.output.name] if len(found) == 1 else found

    def take(self, x: Any) -> bool:
        """Write what was passed to ``step``; whether the step can go on from here.

        Raises:
            InputError: ``x`` has the wrong dtype, shape or range.
        """
        if self._lane.ended or self._buffers.waits:
            return False
        if len(self._specs) == 1:
            self._front.take(self._read(x))
        else:
            given = named(self._specs, x, "step")
            self.write({spec.name: step_array(spec, given[spec.name], self._batch) for spec in self._specs})
        for is_bad in self._checks:  # noqa: SIM110 (a generator costs more than the check)
            if is_bad():
                return False
        return True

    def write(self, items: Mapping[str, Array]) -> None:
        """Write the items of a step, ``[B, step_items, *item_shape]`` by name."""
        for name, front in self._fronts.items():
            front.take(items[name])

    def outputs(self) -> dict[str, Array]:
        """What the step that was computed and committed gives, ``[B, step_items, *item_shape]``: read-only views."""
        self.give()
        return {name: back.out for name, back in self._backs.items()}

    def give(self) -> Any:
        """The same as ``step`` returns it."""
        for call in self._after:
            call()
        return self._result


def step_ends(contract: Contract, lane: Lane, policy: NanPolicy, guard: bool) -> StepEnds | None:
    """The ends of a lane's steps; ``None`` where a step needs more than them, or not even that."""
    specs: tuple[InputSpec | OutputSpec, ...] = (*contract.data, *contract.output_specs)
    needs_more = guard or policy.holds or policy.skips or lane.arena.growing or contract.max_position is not None
    if contract.is_plain or needs_more or any(spec.dtype == "bfloat16" for spec in specs):
        return None
    return StepEnds(contract, lane, policy)


class _Front:
    """Writes items to the graph's input, behind the context, which is kept from step to step.

    Attributes:
        checked: What holds every value that the step sees.
        keeps: Whether the next step needs something of this one.
    """

    def __init__(self, target: Array, context: Array | None) -> None:
        self.checked = target
        size = 0 if context is None else context.shape[1]
        self._new, self._head, self._last = target[:, size:], target[:, :size], target[:, target.shape[1] - size :]
        self._context, self.keeps = context, context is not None

    def take(self, items: Array) -> None:
        """Write items ``[B, step_items, *item_shape]``."""
        if self._context is not None:
            self._head[...] = self._context
        self._new[...] = items

    def keep(self) -> None:
        """Keep what the next step needs, once this one is computed; where :attr:`keeps`."""
        assert self._context is not None
        self._context[...] = self._last


class _Spectral(_Front):
    """Writes the Fourier frame that ends with the new samples."""

    def __init__(self, stft: Stft, target: Array, tail: Array | None) -> None:
        super().__init__(np.zeros((len(target), stft.n_fft), np.float32), tail)
        self._window, self._windowed = window(stft), np.empty_like(self.checked)
        self._target = target[:, 0]
        self._complex = _as_complex(self._target)

    def take(self, items: Array) -> None:
        """Write samples ``[B, hop]``."""
        super().take(items)
        np.multiply(self.checked, self._window, out=self._windowed)
        spectrum = np.fft.rfft(self._windowed)
        if self._complex is not None:
            self._complex[...] = spectrum
        else:
            self._target[..., 0], self._target[..., 1] = spectrum.real, spectrum.imag


class _Back:
    """Gives the graph's output as it lies.

    Attributes:
        out: Read-only ``[B, step_items, *item_shape]``; the next step writes it again.
    """

    def __init__(self, out: Array) -> None:
        self.out = out.view()
        self.out.flags.writeable = False


class _Overlapping(_Back):
    """Adds a frame of samples where it overlaps with those before."""

    def __init__(self, end: BackEnd, frame: Array, tail: Array | None) -> None:
        self._frame, self._hop, self._tail = frame[:, 0], end.hop, tail
        self._piece = np.empty((len(frame), end.hop + end.overlap), np.float32)
        self._samples = np.empty((len(frame), end.hop), np.float32)
        super().__init__(self._samples)

    def give(self) -> None:
        """Add the frame."""
        self._piece[...] = self._frame
        self._samples[...] = self._added()

    def _added(self) -> Array:
        """The samples that are complete with the piece."""
        piece, tail = self._piece, self._tail
        if tail is not None:
            piece[:, : tail.shape[1]] += tail
            tail[...] = piece[:, self._hop :]
        return piece[:, : self._hop]


class _Inverse(_Overlapping):
    """Adds the inverse transform of a frame where it overlaps with those before."""

    def __init__(self, stft: Stft, frame: Array, tail: Array | None) -> None:
        super().__init__(stft, frame, tail)
        self._complex, self._stft = _as_complex(self._frame), stft
        self._window, self._overlap = window(stft), overlap(stft)

    def give(self) -> None:
        """Add the frame."""
        frame = self._complex if self._complex is not None else self._frame[..., 0] + 1j * self._frame[..., 1]
        samples = np.fft.irfft(frame, self._stft.n_fft)
        np.multiply(samples.astype(np.float32, copy=False), self._window, out=self._piece)
        np.divide(self._added(), self._overlap, out=self._samples)


def _as_complex(frames: Array) -> Array | None:
    """Frames float32 ``[..., 2]`` as complex numbers ``[...]`` in the same memory, where they lie that way."""
    if frames.dtype != np.float32 or frames.strides[-1] != 4:
        return None
    view: Array = frames.view(np.complex64)[..., 0]
    return view


def _front(spec: InputSpec, target: Array, buffers: Buffers) -> _Front:
    if isinstance(spec.front_end, Stft):
        return _Spectral(spec.front_end, target, buffers.arrays.get(f"tail.{spec.name}"))
    return _Front(target, buffers.arrays[f"context.{spec.name}"] if isinstance(spec.front_end, Framing) else None)


def _back(spec: OutputSpec, output: Array, buffers: Buffers) -> _Back:
    if spec.back_end is None:
        return _Back(output)
    tail = buffers.arrays.get(f"tail.{spec.name}")
    if isinstance(spec.back_end, Stft):
        return _Inverse(spec.back_end, output, tail)
    return _Overlapping(spec.back_end, output, tail)
