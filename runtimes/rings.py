"""Writing a call's new entries into their rings: entry ``t`` goes to slot ``(position + t) mod W``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from edgemem.dtypes import numpy_dtype
from edgemem.runtimes.layout import Layout, RingGroup
from edgemem.runtimes.memory import Array, Block, Box


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
        self._views = [self._arrays(group) for group in layout.groups] if on_host else None
        batch = layout.batch
        self.append_step = tuple((self._step_copier(group, 0, batch), group.shape[1]) for group in layout.groups)
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
            self.append_rows(np.arange(len(positions)), np.asarray(positions))

    def append_rows(self, rows: Array, positions: Array) -> None:
        """Write the entries of a step of those rows alone.

        Args:
            rows: Indices, int64 ``[K]``.
            positions: Of those rows, before the call, int64 ``[K]``.
        """
        if self._views is not None:
            for ring, entries in self._views:
                ring[:, rows, :, positions % ring.shape[3]] = entries[:, rows, :, 0]  # [K, N, H, D] on both sides
            return
        for appends, (_, window) in zip(self._append_row, self.append_step, strict=True):
            for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
                appends[row](position % window)

    def _arrays(self, group: RingGroup) -> tuple[Array, Array]:
        """The rings ``[N, B, H, W, D]`` of a group in host memory, and the entries ``[N, B, H, 1, D]`` of a step."""
        heads, window, width = group.shape
        dtype, buffer = numpy_dtype(group.dtype), self._block.host_buffer(0, self._block.nbytes)

        def view(offset: int, slots: int, stride: int) -> Array:
            entry = group.entry_bytes
            strides = (stride, heads * slots * entry, slots * entry, entry, dtype.itemsize)
            shape = (len(group.names), self._layout.batch, heads, slots, width)
            return np.ndarray(shape, dtype, buffer, offset, strides)

        stride = self._layout.entry_stride(group, 1)
        return view(group.rings, window, group.ring_stride), view(group.step_entries, 1, stride)

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
