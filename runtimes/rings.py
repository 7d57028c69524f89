"""Writing a call's new entries into their rings: entry ``t`` goes to slot ``(position + t) mod W``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgemem.runtimes import native
from edgemem.runtimes.layout import Layout, RingGroup
from edgemem.runtimes.memory import Array, Block, Box, address_of


def write_ring(ring: Array, entries: Array, positions: Array) -> None:
    """The rule itself, for arrays on the host.

    Args:
        ring: ``[B, H, W, D]``, changed in place.
        entries: ``[B, H, T, D]``.
        positions: int64 ``[B]``, before the call.
    """
    times = range(entries.shape[2])
    for row, position in enumerate(positions.tolist()):
        slots = [(position + time) % ring.shape[2] for time in times]
        ring[row, :, slots] = entries[row].transpose(1, 0, 2)


class Rings:
    """The rings of a stream, written in place by strided copies.

    Attributes:
        append_step: For each group of rings: the copy of a step's entries into a slot of all of them, and ``W``.
    """

    def __init__(self, block: Block, layout: Layout, on_host: bool) -> None:
        self._block = block
        self._layout = layout
        batch = layout.batch
        self._rows = np.arange(batch)
        self.append_step = tuple((self._step_copier(group, 0, batch), group.shape[1]) for group in layout.groups)
        calls = native.row_calls() if on_host else None
        if calls is not None:
            self._append_rows: native.Call | None = calls[0]
            self._table = np.array([self._numbers(group) for group in layout.groups], np.int64)
            self._table_address = address_of(self._table)
            return
        self._append_rows = None
        self._views = [self._arrays(group) for group in layout.groups] if on_host else None
        self._append_row = tuple([self._step_copier(g, row, 1) for row in range(batch)] for g in layout.groups)

    def append(self, time: int, positions: Sequence[int], common: int | None) -> None:
        """Write the entries of a call of ``time`` steps.

        Args:
            time: Steps of the call.
            positions: Of every row, before the call.
            common: The same for all rows, or ``None`` where they differ.
        """
        if time > 1:
            for group in self._layout.groups:
                self._append_chunk(group, time, positions, common)
        elif common is not None:
            for append, window in self.append_step:
                append(common % window)
        else:
            self.append_rows(slice(None), np.array(positions), 0)

    def append_rows(self, rows: Array | slice, positions: Array, steps: int) -> None:
        """Write the entries of a step of those rows alone, and advance their positions.

        Args:
            rows: Indices, int64 ``[K]``, or a slice.
            positions: Of every row, before the call, int64 ``[B]``, contiguous.
            steps: What is added to those of the rows: 1, or 0 where somebody else does it.
        """
        chosen = self._rows[rows]
        if self._append_rows is not None:
            table = self._table_address, len(self._table)
            self._append_rows(
                self._block.address, *table, address_of(chosen), len(chosen), address_of(positions), steps
            )
            return
        before = positions[chosen]
        positions[chosen] = before + steps
        if self._views is not None and len(chosen) > 1:
            for ring, entries, starts, window in self._views:
                at = (starts[chosen] + (before % window)[:, np.newaxis]).reshape(-1)
                for into, new in zip(ring, entries, strict=True):  # numpy is fastest with one axis
                    into[at] = new[chosen].reshape(-1)
            return
        for appends, (_, window) in zip(self._append_row, self.append_step, strict=True):
            for row, position in zip(chosen.tolist(), before.tolist(), strict=True):
                appends[row](position % window)

    def _numbers(self, group: RingGroup) -> list[int]:
        """A group as append_rows.c takes it."""
        (heads, window, _), rings = group.shape, (group.rings, group.ring_stride)
        entries = group.step_entries, self._layout.entry_stride(group, 1)
        return [len(group.names), heads, window, group.entry_bytes, *rings, *entries]

    def _arrays(self, group: RingGroup) -> tuple[Array, Array, Array, int]:
        """A group in host memory, an entry being one element: the rings ``[N, B*H*W]``, the entries ``[N, B, H]`` of a
        step, where in the rings each row and head starts, int64 ``[B, H]``, and ``W``."""
        (heads, window, _), entry, batch = group.shape, group.entry_bytes, self._layout.batch
        buffer, dtype = self._block.host_buffer(0, self._block.nbytes), np.dtype(f"V{entry}")
        shape, stride = (len(group.names), batch * heads * window), self._layout.entry_stride(group, 1)
        rings: Array = np.ndarray(shape, dtype, buffer, group.rings, (group.ring_stride, entry))
        strides = (stride, heads * entry, entry)
        entries: Array = np.ndarray((shape[0], batch, heads), dtype, buffer, group.step_entries, strides)
        return rings, entries, np.arange(batch * heads).reshape(batch, heads) * window, window

    def _step_copier(self, group: RingGroup, row: int, rows: int) -> Callable[[int], None]:
        """The append of one step for ``rows`` rows from ``row`` on, all at one slot."""
        heads, window, _ = group.shape
        entry = group.entry_bytes
        stride = self._layout.entry_stride(group, 1)
        box = Box(entry, rows * heads, len(group.names), window * entry, entry, group.ring_stride, stride)
        dst, src = group.rings + row * heads * window * entry, group.step_entries + row * heads * entry
        return self._block.copier(dst, src, box, entry, window)

    def _append_chunk(self, group: RingGroup, time: int, positions: Sequence[int], common: int | None) -> None:
        heads, window, _ = group.shape
        entry = group.entry_bytes
        runs = [(0, len(positions), common)] if common is not None else [(b, 1, p) for b, p in enumerate(positions)]
        for row, rows, position in runs:
            slot = position % window
            head = min(time, window - slot)
            for first, count, target in ((0, head, slot), (head, time - head, 0)):
                if count:
                    self._block.copy_box(
                        group.rings + (row * heads * window + target) * entry,
                        group.chunk_entries + (row * heads * time + first) * entry,
                        Box(
                            width=count * entry,
                            height=rows * heads,
                            depth=len(group.names),
                            dst_pitch=window * entry,
                            src_pitch=time * entry,
                            dst_slice=group.ring_stride,
                            src_slice=self._layout.entry_stride(group, time),
                        ),
                    )
