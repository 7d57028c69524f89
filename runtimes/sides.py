"""The replaced states, each of which lies twice: a call reads one copy and writes the other."""

from __future__ import annotations

import numpy as np

from edgemem.runtimes import native
from edgemem.runtimes.layout import Layout
from edgemem.runtimes.memory import Array, Block, Place, address_of


class Sides:
    """Copies rows from one side to the other, where a call advanced some rows only.

    Args:
        block: Where they lie.
        layout: The places in it.
        on_host: Whether the host sees the block.
    """

    def __init__(self, block: Block, layout: Layout, on_host: bool) -> None:
        self._block, self._layout, self._on_host = block, layout, on_host
        self._rows = np.arange(layout.batch)
        self._pairs: list[tuple[Array, ...]] = []
        self._tables: tuple[Array, ...] = ()
        calls = native.row_calls() if on_host else None
        if calls is not None and all(place.splits and place.batch_axis is not None for place in self._places(0)):
            self._copy_rows = calls[1]
            self._tables = self._table(0), self._table(1)

    def copy(self, side: int, rows: Array | slice) -> None:
        """Copy rows to ``side`` from the other one.

        Args:
            side: 0 or 1.
            rows: Indices, int64 ``[K]``, or a slice.
        """
        if self._tables:
            chosen, table = self._rows[rows], self._tables[side]
            self._copy_rows(self._block.address, address_of(table), len(table), address_of(chosen), len(chosen))
        elif self._on_host:
            for pair in self._views():
                pair[side][rows] = pair[1 - side][rows]
        else:
            for to, of in zip(self._places(side), self._places(1 - side), strict=True):
                for row in self._rows[rows].tolist():
                    for (dst, nbytes), (src, _) in zip(to.row_parts(row), of.row_parts(row), strict=True):
                        self._block.copy_from(self._block, nbytes, dst, src)

    def _places(self, side: int) -> list[Place]:
        return list(self._layout.replaced[side].values())

    def _table(self, side: int) -> Array:
        """The states as rows.c takes them."""
        numbers = [
            (to.offset, of.offset, to.nbytes // self._layout.batch)
            for to, of in zip(self._places(side), self._places(1 - side), strict=True)
        ]
        return np.array(numbers, np.int64).reshape(-1, 3)

    def _views(self) -> list[tuple[Array, ...]]:
        """Both copies of every state, batch axis first; made at first use."""
        if not self._pairs:
            buffer = self._block.host_buffer(0, self._layout.state_bytes)
            sides = [[place.rows(buffer) for place in self._places(side)] for side in (0, 1)]
            self._pairs = list(zip(*sides, strict=True))
        return self._pairs
