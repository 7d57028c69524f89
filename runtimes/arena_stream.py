"""A stream whose state lies in an arena: what is the same for every engine that is bound to addresses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import OUTPUT_INDICES, POSITION, StateSpec
from edgemem.runtimes.arena import Arena, Place
from edgemem.runtimes.memory import Array, Memory
from edgemem.runtimes.session import Session, Stream


class ArenaStream(Stream):
    """A stream whose states all have a fixed size and lie in one :class:`~edgemem.runtimes.arena.Arena`."""

    def __init__(self, session: Session, batch: int, arena: Arena) -> None:
        super().__init__(session, batch, arena.positions, arena.step_input)
        self._arena = arena
        self._bfloat16_output = session.contract.output.dtype == "bfloat16"
        self._step_output = arena.step_output[:, 0]  # [B, *output.shape]

    @property
    def memory(self) -> Memory:
        """Where its arena lies, and through which everything is issued on a device."""
        return self._arena.memory

    def _tensors(self, time: int, wanted: int, side: int) -> tuple[dict[str, Place], dict[str, Place]]:
        """Inputs and outputs of a call of ``time`` steps that reads ``side``, but for the output itself.

        Args:
            time: Steps of the call.
            wanted: Steps whose outputs are computed.
            side: Which copy of the replaced states is read; the other is written.
        """
        contract, arena = self._contract, self._arena
        layout = arena.layout
        inputs = {contract.input.name: layout.step_input if time == 1 else layout.chunk_input_of(time)}
        if contract.position == "input":
            inputs[POSITION] = layout.positions
        if contract.output_indices:
            indices = Place(layout.chunk_indices.offset, (wanted,), np.dtype(np.int64))
            inputs[OUTPUT_INDICES] = layout.step_indices if time == 1 else indices
        entries = layout.entries(time)
        outputs = {}
        for state in contract:
            inputs[state.input_name] = arena.past(state, side)
            outputs[state.output_name] = (
                entries[state.name] if state.update == "append" else layout.replaced[1 - side][state.name]
            )
        return inputs, outputs

    def _wanted(self, time: int, every: bool) -> tuple[Array | None, int]:
        """The output indices ``[S]`` of a chunk, ``None`` where the graph takes none, and how many outputs come."""
        if not self._contract.output_indices:
            return None, time
        return (np.arange(time), time) if every else (np.array([time - 1]), 1)

    def state(self) -> dict[str, Array]:
        """See :meth:`Stream.state`."""
        return self._arena.read_state()

    def _install(self, state: Mapping[str, Array], positions: NDArray[np.int64]) -> None:
        self._arena.write_state(state)
        self._positions[...] = positions
        self._positions_changed()

    def _new_state(self, time: int) -> Iterator[tuple[StateSpec, Array]]:
        arena = self._arena
        entries = arena.layout.entries(time)
        for state in self._contract:
            place = entries[state.name] if state.update == "append" else arena.past(state, 1 - arena.side)
            yield state, arena.read(place)

    def _commit(self, time: int) -> None:
        self._arena.commit(time, self._common)

    def _read(self, state: StateSpec) -> Array:
        return self._arena.read(self._arena.past(state, self._arena.side))

    def _write(self, state: StateSpec, value: Array) -> None:
        self._arena.write(self._arena.past(state, self._arena.side), value)

    def _reset_rows(self, rows: Sequence[int] | None) -> None:
        self._arena.reset(rows)

    def _copy_rows(self, source: Stream, rows: Sequence[int] | None) -> None:
        if not isinstance(source, ArenaStream):
            raise TypeError(f"cannot copy from a {type(source).__name__}")
        if rows is None:
            self._arena.copy_state(source._arena)
        else:
            self._arena.copy_rows(source._arena, rows)
