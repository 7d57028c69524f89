"""Which calls advance the rows that are ready: windows of neighbouring rows, each bound once where it lies.

A window may hold rows that are not ready. They are computed with it, and what they give is dropped. So the rows that
are ready are covered by the windows that take the least time, by times measured when the pool is opened.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from edgemem.runtimes.engine import Call
from edgemem.runtimes.lane import Lane
from edgemem.runtimes.memory import Tensor

Window = tuple[int, int]
"""The first row, and how many."""
_TRIES = 3
_MOST_COVERS = 4096


class Windows:
    """The calls of one lane, for windows of 1, 2, 4, … rows.

    Args:
        lane: The lane.
        rows: Rows of the lane.
        whole: Whether every call must compute all rows, as on a device.

    Attributes:
        seconds: Time of a call, by the number of its rows.
    """

    def __init__(self, lane: Lane, rows: int, *, whole: bool) -> None:
        self._lane, self._rows = lane, rows
        self._calls: dict[tuple[int, Window], Call] = {}
        self._covers: dict[bytes, list[Window]] = {}
        inputs, outputs = lane.arena.inputs(1, 1, 0), lane.arena.outputs(1, 1, 0)
        self._whole = whole or not all(tensor.place.splits for tensor in (*inputs.values(), *outputs.values()))
        sizes = [rows] if self._whole else [1 << power for power in range((rows - 1).bit_length())] + [rows]
        self.seconds = {size: self._measured((0, size)) for size in sizes}

    def _measured(self, window: Window) -> float:
        """The least time of a few calls; what they compute becomes nobody's state."""
        times = []
        for _ in range(1 if self._whole else _TRIES):
            started = time.perf_counter()
            self._lane.run(self.call(window))
            times.append(time.perf_counter() - started)
        return min(times)

    def call(self, window: Window) -> Call:
        """What runs a step of the rows of a window."""
        lane, (first, rows) = self._lane, window
        side = lane.arena.side
        if rows == self._rows:
            return lane.calls[side]
        call = self._calls.get((side, window))
        if call is None:
            bound = [
                {name: Tensor(tensor.block, tensor.place.narrowed(first, rows)) for name, tensor in tensors.items()}
                for tensors in (lane.arena.inputs(1, 1, side), lane.arena.outputs(1, 1, side))
            ]
            call = self._calls[side, window] = lane.engine.bind(1, *bound)
        return call

    def cover(self, rows: NDArray[np.int64] | slice) -> list[Window]:
        """The windows that hold every one of those rows: int64 ``[K]``, or a slice."""
        count = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        if self._whole or count == self._rows:
            return [(0, self._rows)]
        if isinstance(rows, slice) and count == 1:
            return [(rows.start, 1)]
        ready: NDArray[np.bool_] = np.zeros(self._rows, bool)
        ready[rows] = True
        key = ready.tobytes()
        found = self._covers.get(key)
        if found is None:
            if len(self._covers) == _MOST_COVERS:
                self._covers.clear()
            found = self._covers[key] = self._best(key, 0, 1 << (self._rows - 1).bit_length())[1]
        return found

    def rows_within(self, seconds: float) -> int:
        """About how many neighbouring rows advance within so many seconds; 0 where not even one does."""
        return max((size for size, taken in self.seconds.items() if taken <= seconds), default=0)

    def _best(self, ready: bytes, first: int, size: int) -> tuple[float, list[Window]]:
        """The windows within ``size`` rows that take the least time, and that time."""
        count = ready.count(1, first, first + size)
        if count == 0:
            return 0.0, []
        rows = min(size, self._rows - first)
        alone = self._seconds(rows), [(first, rows)]
        if count == rows:
            return alone
        halves = [self._best(ready, start, size // 2) for start in (first, first + size // 2)]
        seconds = sum(half[0] for half in halves)
        return alone if alone[0] <= seconds else (seconds, [*halves[0][1], *halves[1][1]])

    def _seconds(self, rows: int) -> float:
        """The time of a call: that of the next size that was measured."""
        return self.seconds.get(rows) or min(seconds for size, seconds in self.seconds.items() if size >= rows)
