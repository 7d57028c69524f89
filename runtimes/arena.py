"""The arena: one allocation that holds everything a stream touches in a step.

::

    state   rings          [N, B, H, W, D] for each group of N appended states of equal (H, W, D, dtype)
            replaced       twice: one copy is read while the other is written, and they swap after the step
    work    step input     [B, 1, ...] and positions [B], side by side so that a device gets them in one copy
            output indices [1] and [L];  step output [B, 1, ...]
            entries        [N, B, H, 1, D] of a step, then [N, B, H, T, D] of a chunk of T ≤ L steps
            chunk input    [B, L, ...]

The state comes first, so that a fork is one copy. The rings of a group lie one behind the other, as do its entries, so
that writing one step's entries into every ring of the group is one strided copy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgemem.contract import Contract, StateSpec, initial_state
from edgemem.dtypes import numpy_dtype
from edgemem.runtimes.memory import Array, Block, Box, Memory


@dataclass(frozen=True)
class Place:
    """Where a tensor lies: offset in bytes, shape with the batch axis first, dtype as numpy stores it."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.nbytes

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the batch; rows are contiguous."""
        return self.nbytes // self.shape[0]


@dataclass(frozen=True)
class RingGroup:
    """Appended states of equal shape and dtype.

    Attributes:
        names: The states, in the order in which they lie.
        shape: ``(H, W, D)``.
        dtype: As numpy stores it.
        rings: Offset of the first ring.
        ring_stride: Bytes from one ring to the next.
        step_entries: Offset of the entries of a step.
        chunk_entries: Offset of the entries of a chunk.
    """

    names: tuple[str, ...]
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    rings: int
    ring_stride: int
    step_entries: int
    chunk_entries: int

    def entries_at(self, time: int) -> int:
        """Offset of the entries of a call of ``time`` steps."""
        return self.step_entries if time == 1 else self.chunk_entries


class Layout:
    """Offsets of every tensor of a stream.

    Args:
        contract: A contract whose states all have a fixed size.
        batch: Streams that advance together, ``B``.
        max_time: Most steps of one call, ``L``.
        alignment: Bytes to which every tensor is aligned.
    """

    def __init__(self, contract: Contract, batch: int, max_time: int, alignment: int) -> None:
        self.batch = batch
        self.max_time = max_time
        self._alignment = alignment
        self._end = 0

        shapes: dict[tuple[tuple[int, ...], str], list[str]] = {}
        for state in contract:
            if state.update == "append":
                shapes.setdefault((state.fixed_shape, state.dtype), []).append(state.name)
        self.rings: dict[str, Place] = {}
        starts: list[tuple[int, int]] = []
        for (shape, dtype), names in shapes.items():
            places = [self._place((batch, *shape), dtype) for _ in names]
            self.rings.update(zip(names, places, strict=True))
            starts.append((places[0].offset, self._align(places[0].nbytes)))
        replaced = [state for state in contract if state.update == "replace"]
        first = {state.name: self._place((batch, *state.fixed_shape), state.dtype) for state in replaced}
        first_end = self._end
        second = {state.name: self._place((batch, *state.fixed_shape), state.dtype) for state in replaced}
        self.replaced = (first, second)
        self.state_bytes = self._end
        self.live_bytes = (first_end, self._end)
        """Bytes from the start that hold the whole state, where the one or the other copy is the current one."""

        self.step_input = self._place((batch, 1, *contract.input.shape), contract.input.dtype)
        self.positions = self._place((batch,), "int64")
        self.step_indices = self._place((1,), "int64")
        self.step_output = self._place((batch, 1, *contract.output.shape), contract.output.dtype)
        step_entries = [self._entries(names, batch, shape, dtype, 1) for (shape, dtype), names in shapes.items()]
        self.chunk_input = self._place((batch, max_time, *contract.input.shape), contract.input.dtype)
        self.chunk_indices = self._place((max_time,), "int64")
        chunk_time = max_time if max_time > 1 else 0
        chunk_entries = [
            self._entries(names, batch, shape, dtype, chunk_time) for (shape, dtype), names in shapes.items()
        ]
        self.nbytes = self._end
        self.groups = tuple(
            RingGroup(
                names=tuple(names),
                shape=(shape[0], shape[1], shape[2]),
                dtype=numpy_dtype(dtype),
                rings=start,
                ring_stride=stride,
                step_entries=step,
                chunk_entries=chunk,
            )
            for ((shape, dtype), names), (start, stride), step, chunk in zip(
                shapes.items(), starts, step_entries, chunk_entries, strict=True
            )
        )

    def _align(self, offset: int) -> int:
        return -(-offset // self._alignment) * self._alignment

    def _place(self, shape: tuple[int, ...], dtype: str) -> Place:
        place = Place(self._end, shape, numpy_dtype(dtype))
        self._end = self._align(place.end)
        return place

    def _entries(self, names: Sequence[str], batch: int, shape: tuple[int, ...], dtype: str, time: int) -> int:
        start = self._end
        for _ in names:
            self._place((batch, shape[0], time, shape[2]), dtype)
        return start

    def chunk_input_of(self, time: int) -> Place:
        """Where the data of a chunk of ``time`` steps lies: at the start of that of the longest chunk."""
        place = self.chunk_input
        return Place(place.offset, (place.shape[0], time, *place.shape[2:]), place.dtype)

    def entry_stride(self, group: RingGroup, time: int) -> int:
        """Bytes from the entries of one state of a group to those of the next, in a call of ``time`` steps."""
        heads, _, width = group.shape
        return self._align(self.batch * heads * time * width * group.dtype.itemsize)

    def entries(self, time: int) -> dict[str, Place]:
        """Where a call of ``time`` steps puts its new entries ``[B, H, time, D]``."""
        return {
            name: Place(
                group.entries_at(time) + index * self.entry_stride(group, time),
                (self.batch, group.shape[0], time, group.shape[2]),
                group.dtype,
            )
            for group in self.groups
            for index, name in enumerate(group.names)
        }


class Arena:
    """The memory of one stream, and the moves within it.

    Attributes:
        layout: Where things lie.
        block: The allocation.
        side: Which copy of the replaced states, 0 or 1, is the state; a step writes the other.
        step_input: ``[B, 1, ...]``; the host writes the data of a step here.
        positions: int64 ``[B]``; the host keeps every stream's position here.
        step_output: ``[B, 1, ...]``, read-only.
        append_step: For each group of rings, the copy of a step's entries into a slot of all its rings, and ``W``.
    """

    def __init__(self, memory: Memory, contract: Contract, batch: int, max_time: int) -> None:
        self.layout = layout = Layout(contract, batch, max_time, memory.alignment)
        self.memory = memory
        self.block: Block = memory.allocate(layout.nbytes)
        self.side = 0
        self._contract = contract
        self._on_host = memory.on_host
        start = layout.step_input.offset
        self._inputs = self.block.host_buffer(start, layout.positions.end - start)
        self.step_input = _tensor(self._inputs, layout.step_input, start)
        self.positions = _tensor(self._inputs, layout.positions, start)
        self._output = self.block.host_buffer(layout.step_output.offset, layout.step_output.nbytes)
        self.step_output = _tensor(self._output, layout.step_output, layout.step_output.offset)
        self.step_output.flags.writeable = False
        self._inputs[...] = 0  # so that an engine may be tried before the first step
        start = layout.chunk_input.offset
        self._chunk = self.block.host_buffer(start, layout.chunk_indices.end - start)
        self.block.upload(layout.step_indices.offset, np.zeros(1, np.int64))
        self.append_step = tuple((self._step_copier(group, 0, batch), group.shape[1]) for group in layout.groups)
        self._append_row = tuple([self._step_copier(g, row, 1) for row in range(batch)] for g in layout.groups)

    def address(self, place: Place) -> int:
        """Address of a tensor."""
        return self.block.address + place.offset

    def past(self, state: StateSpec, side: int) -> Place:
        """Where a state lies while ``side`` is the current one."""
        return self.layout.rings[state.name] if state.update == "append" else self.layout.replaced[side][state.name]

    def send_step(self) -> None:
        """Bring the data and the positions of a step to the device; host memory needs nothing."""
        if not self._on_host:
            self.block.send(self.layout.step_input.offset, self._inputs)

    def fetch_output(self) -> None:
        """Bring the output of a step to the host; host memory needs nothing."""
        if not self._on_host:
            self.block.download(self.layout.step_output.offset, self._output)

    def send_chunk(self, data: Array, indices: Array | None) -> None:
        """Write the data ``[B, T, ...]``, the positions, and the output indices ``[S]`` of a chunk.

        A device has read them when the chunk's output is on the host; until then they must not be written again.
        """
        self._send_chunk(self.layout.chunk_input.offset, data)
        if indices is not None:
            self._send_chunk(self.layout.chunk_indices.offset, indices)
        self.send_step()

    def _send_chunk(self, offset: int, array: Array) -> None:
        start = offset - self.layout.chunk_input.offset
        staged = self._chunk[start : start + array.nbytes]
        staged.view(array.dtype).reshape(array.shape)[...] = array
        if not self._on_host:
            self.block.send(offset, staged)

    def commit(self, time: int, common: int | None) -> None:
        """Make what a call of ``time`` steps put out the state: write entries into their rings, swap replaced states.

        Args:
            time: Steps of the call.
            common: Position of every row before the call, or ``None`` where rows differ.
        """
        if time > 1:
            for group in self.layout.groups:
                self._append_chunk(group, time, common)
        elif common is not None:
            for append, window in self.append_step:
                append(common % window)
        else:
            for appends, (_, window) in zip(self._append_row, self.append_step, strict=True):
                for append, position in zip(appends, self.positions.tolist(), strict=True):
                    append(position % window)
        self.side = 1 - self.side

    def _row_geometry(self, group: RingGroup, time: int) -> tuple[int, int, int, int]:
        """Bytes: one entry, pitch between heads in the ring, pitch between heads in the entries, entries' stride."""
        _, window, width = group.shape
        entry = width * group.dtype.itemsize
        return entry, window * entry, time * entry, self.layout.entry_stride(group, time)

    def _step_copier(self, group: RingGroup, row: int, rows: int) -> Callable[[int], None]:
        """The append of one step for ``rows`` rows from ``row`` on, all at one slot."""
        heads, window, _ = group.shape
        entry, ring_pitch, entry_pitch, stride = self._row_geometry(group, 1)
        box = Box(entry, rows * heads, len(group.names), ring_pitch, entry_pitch, group.ring_stride, stride)
        dst, src = group.rings + row * heads * ring_pitch, group.step_entries + row * heads * entry_pitch
        return self.block.copier(dst, src, box, entry, window)

    def _append_chunk(self, group: RingGroup, time: int, common: int | None) -> None:
        heads, window, _ = group.shape
        entry, ring_pitch, entry_pitch, stride = self._row_geometry(group, time)
        batch = self.layout.batch
        runs = (
            [(0, batch, common)] if common is not None else [(b, 1, p) for b, p in enumerate(self.positions.tolist())]
        )
        for row, rows, position in runs:
            slot = position % window
            head = min(time, window - slot)
            for first, count, target in ((0, head, slot), (head, time - head, 0)):
                if count:
                    self.block.copy_box(
                        group.rings + row * heads * ring_pitch + target * entry,
                        group.chunk_entries + row * heads * entry_pitch + first * entry,
                        Box(
                            width=count * entry,
                            height=rows * heads,
                            depth=len(group.names),
                            dst_pitch=ring_pitch,
                            src_pitch=entry_pitch,
                            dst_slice=group.ring_stride,
                            src_slice=stride,
                        ),
                    )

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Give every state, or those rows of it, its initial value."""
        if rows is None:
            self.write_state({state.name: initial_state(state, self.layout.batch) for state in self._contract})
            return
        for state in self._contract:
            place, initial = self.past(state, self.side), initial_state(state, 1)
            for row in rows:
                self.block.upload(place.offset + row * place.row_bytes, initial)

    def read_state(self) -> dict[str, Array]:
        """Every state by name, ``[B, *shape]``: views of one array that is the caller's own. One copy."""
        buffer: Array = np.empty(self.layout.live_bytes[self.side], np.uint8)
        self.block.download(0, buffer)
        return {state.name: _tensor(buffer, self.past(state, self.side), 0) for state in self._contract}

    def write_state(self, values: Mapping[str, Array]) -> None:
        """Replace every state, ``[B, *shape]`` by name. One copy."""
        self.side = 0  # whose states follow the rings immediately
        buffer: Array = np.zeros(self.layout.live_bytes[0], np.uint8)
        for state in self._contract:
            _tensor(buffer, self.past(state, 0), 0)[...] = values[state.name]
        self.block.upload(0, buffer)

    def read(self, place: Place) -> Array:
        """A copy of a tensor, on the host."""
        array: Array = np.empty(place.shape, place.dtype)
        self.block.download(place.offset, array)
        return array

    def write(self, place: Place, value: Array) -> None:
        """Write a whole tensor from the host."""
        self.block.upload(place.offset, np.ascontiguousarray(value))

    def copy_state(self, source: Arena) -> None:
        """Take over state and positions of an arena of the same layout, in one copy."""
        self.block.copy_from(source.block, self.layout.state_bytes)
        self.side = source.side
        self.positions[...] = source.positions

    def copy_rows(self, source: Arena, rows: Sequence[int]) -> None:
        """Take over those rows of another arena's state, in that order."""
        for state in self._contract:
            to, of = self.past(state, self.side), source.past(state, source.side)
            for row, chosen in enumerate(rows):
                self.block.copy_from(
                    source.block, to.row_bytes, to.offset + row * to.row_bytes, of.offset + chosen * of.row_bytes
                )
        self.positions[...] = source.positions[list(rows)]


def _tensor(buffer: Array, place: Place, start: int) -> Array:
    return np.ndarray(place.shape, place.dtype, buffer, place.offset - start)
