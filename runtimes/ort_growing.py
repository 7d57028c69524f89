"""ONNX Runtime with a state that grows: the baseline, driven as host loops drive a full KV cache today.

What a call puts out is bound back as what the next call takes; ONNX Runtime allocates every new cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.contract import OUTPUT_INDICES, POSITION, StateSpec, initial_state
from edgemem.dtypes import numpy_dtype
from edgemem.errors import EdgememError, InputError
from edgemem.runtimes.memory import Array
from edgemem.runtimes.session import Stream

if TYPE_CHECKING:
    from edgemem.runtimes.ort import OrtSession


class GrowingStream(Stream):
    """A stream of which at least one state grows with the position.

    Raises:
        InputError: A state is bfloat16, which numpy cannot hand to ONNX Runtime.
    """

    def __init__(self, session: OrtSession, batch: int) -> None:
        from onnxruntime import OrtValue

        contract = session.contract
        shape = (batch, 1, *contract.input.shape)
        super().__init__(session, batch, np.zeros(batch, np.int64), np.zeros(shape, numpy_dtype(contract.input.dtype)))
        if "bfloat16" in {contract.input.dtype, contract.output.dtype, *(state.dtype for state in contract)}:
            raise InputError("a growing state is not supported in a bfloat16 model.", hint="Export it in float32.")
        self._ort: OrtSession | None = session
        self._to_ort: Any = OrtValue.ortvalue_from_numpy
        self._past: dict[str, Any] = {}  # OrtValues; never changed in place, so forks share them
        self._new: dict[str, Any] = {}
        for state in contract:
            self._write(state, initial_state(state, batch))

    def _compute(self, data: Array, every: bool) -> Array:
        contract, session = self._contract, self._ort
        if session is None:
            raise EdgememError("the session is closed.", hint="Open the bundle again.")
        time, device = data.shape[1], session.device
        engine = session.engine_for(time)
        binding = engine.io_binding()
        binding.bind_cpu_input(contract.input.name, np.ascontiguousarray(data))
        if contract.position == "input":
            binding.bind_cpu_input(POSITION, self._positions)
        if contract.output_indices:
            binding.bind_cpu_input(OUTPUT_INDICES, np.arange(time) if every else np.array([time - 1]))
        for state in contract:
            binding.bind_ortvalue_input(state.input_name, self._past[state.name])
        binding.bind_output(contract.output.name)
        for state in contract:
            binding.bind_output(state.output_name, device)
        try:
            engine.run_with_iobinding(binding)
        except Exception as error:
            raise EdgememError(f"ONNX Runtime failed at position {self.position}: {error}") from error
        output, *new = binding.get_outputs()
        self._new = {state.name: value for state, value in zip(contract, new, strict=True)}
        values: Array = output.numpy()
        return values if every else values[:, -1:]

    def _compute_step(self) -> Array:
        output = self._compute(self._step_input, True)[:, 0]
        output.flags.writeable = False
        return output

    def _compute_chunk(self, data: Array, every: bool) -> Array:
        return self._compute(data, every)

    def _new_state(self, time: int) -> Iterator[tuple[StateSpec, Array]]:
        for state in self._contract:
            yield state, self._new[state.name].numpy()

    def _commit(self, time: int) -> None:
        for state in self._contract:
            if state.update == "replace":
                self._past[state.name] = self._new[state.name]
            else:
                ring, entries = self._read(state), self._new[state.name].numpy()
                write_ring(ring, entries, self._positions)
                self._write(state, ring)
        self._new = {}

    def _read(self, state: StateSpec) -> Array:
        value: Array = self._past[state.name].numpy()
        return value.copy()

    def _write(self, state: StateSpec, value: Array) -> None:
        assert self._ort is not None
        # The OrtValue may share the array's memory, which must therefore be the stream's own.
        self._past[state.name] = self._to_ort(np.array(value, order="C"), self._ort.device, 0)

    def _copy_rows(self, source: Stream, rows: Any) -> None:
        if rows is not None or not isinstance(source, GrowingStream):
            super()._copy_rows(source, rows)
            return
        self._past = dict(source._past)
        self._positions[...] = source._positions

    def _close(self) -> None:
        self._ort = None
        self._past.clear()


def write_ring(ring: Array, entries: Array, positions: Array) -> None:
    """Write entries ``[B, H, T, D]`` into a ring ``[B, H, W, D]``, entry ``t`` into slot ``(position + t) mod W``."""
    slots = (positions[:, np.newaxis] + np.arange(entries.shape[2])) % ring.shape[2]  # [B, T]
    ring[np.arange(len(ring))[:, np.newaxis], :, slots] = entries.transpose(0, 2, 1, 3)
