"""Where an arena lies: the few things that host memory and device memory must both be able to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.dtypes import element_type, numpy_dtype
from edgemem.errors import EdgememError
from edgemem.machine.memory import total_bytes

Array = NDArray[Any]
Bytes = NDArray[np.uint8]
_SURELY_THERE = 64 << 20  # bytes for which nobody asks how much memory there is


def address_of(array: Array) -> int:
    """Where a contiguous array lies."""
    found: int = array.__array_interface__["data"][0]  # twice as fast as array.ctypes
    return found


@dataclass(frozen=True)
class Box:
    """A strided copy: ``depth`` slices of ``height`` rows of ``width`` contiguous bytes.

    Attributes:
        width: Bytes in a row.
        height: Rows in a slice.
        depth: Slices.
        dst_pitch: Bytes from one row of the destination to the next.
        src_pitch: Bytes from one row of the source to the next.
        dst_slice: Bytes from one slice of the destination to the next.
        src_slice: Bytes from one slice of the source to the next.
    """

    width: int
    height: int
    depth: int
    dst_pitch: int
    src_pitch: int
    dst_slice: int
    src_slice: int

    def flat(self) -> Box:
        """The same copy as one slice, where the rows of all slices lie at even distances; otherwise itself."""
        if self.height == 1:
            return replace(self, height=self.depth, depth=1, dst_pitch=self.dst_slice, src_pitch=self.src_slice)
        if self.dst_slice == self.height * self.dst_pitch and self.src_slice == self.height * self.src_pitch:
            return replace(self, height=self.height * self.depth, depth=1)
        return self


class Block(Protocol):
    """One contiguous allocation. Offsets and sizes are in bytes; copies within a device are in call order."""

    @property
    def address(self) -> int:
        """Address of the first byte."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""

    def host_buffer(self, offset: int, nbytes: int) -> Bytes:
        """Bytes that the host can read and write: the block's own where the host sees them, else a staging copy."""

    def upload(self, offset: int, array: Array) -> None:
        """Copy a contiguous host array into the block; the array may be reused at once."""

    def send(self, offset: int, buffer: Bytes) -> None:
        """Copy what :meth:`host_buffer` gave to the block; the host leaves it alone until the next :meth:`download`."""

    def download(self, offset: int, array: Array) -> None:
        """Copy from the block into a contiguous host array, after everything issued before."""

    def copy_from(self, source: Block, nbytes: int, dst: int = 0, src: int = 0) -> None:
        """Copy ``nbytes`` bytes from ``source``, a block of the same memory."""

    def copy_box(self, dst: int, src: int, box: Box) -> None:
        """A strided copy inside the block."""

    def copier(self, dst: int, src: int, box: Box, step: int, count: int) -> Callable[[int], None]:
        """A prepared strided copy: called with ``i`` in ``0..count-1`` it copies to ``dst + i * step``."""


class Memory(Protocol):
    """A kind of memory."""

    @property
    def device(self) -> str:
        """``"cpu"`` or ``"cuda"``."""

    @property
    def alignment(self) -> int:
        """Bytes to which every tensor is aligned."""

    @property
    def on_host(self) -> bool:
        """Whether the host reads and writes it directly, so that nothing need be uploaded or downloaded."""

    def allocate(self, nbytes: int) -> Block:
        """A block of ``nbytes`` bytes whose content is undefined; it is freed when nobody refers to it."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a block.

    Attributes:
        offset: Bytes from the start of the block.
        shape: Its shape, as the graph has it.
        dtype: Element type, by the contract's name.
        batch_axis: Which axis is the batch; ``None`` where there is none.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: str
    batch_axis: int | None = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * element_type(self.dtype).nbytes

    @property
    def end(self) -> int:
        """Offset of the first byte behind it."""
        return self.offset + self.nbytes

    def view(self, buffer: Array, start: int = 0) -> Array:
        """The tensor in ``buffer``, the bytes of the block from ``start`` on."""
        return np.ndarray(self.shape, numpy_dtype(self.dtype), buffer, self.offset - start)

    def rows(self, buffer: Array, start: int = 0) -> Array:
        """The same with the batch axis first; an axis of size 1 where there is none."""
        array = self.view(buffer, start)
        return array[np.newaxis] if self.batch_axis is None else np.moveaxis(array, self.batch_axis, 0)

    @property
    def splits(self) -> bool:
        """Whether neighbouring rows of the batch lie in one piece."""
        return self.batch_axis is None or math.prod(self.shape[: self.batch_axis]) == 1

    def narrowed(self, first: int, rows: int) -> Place:
        """Where ``rows`` rows from ``first`` on lie, if it :attr:`splits`; all of it where there is no batch axis."""
        axis = self.batch_axis
        if axis is None:
            return self
        offset = self.offset + first * (self.nbytes // self.shape[axis])
        return replace(self, offset=offset, shape=(*self.shape[:axis], rows, *self.shape[axis + 1 :]))

    def row_parts(self, row: int) -> list[tuple[int, int]]:
        """Offset and bytes of each contiguous part of one row of the batch."""
        axis = self.batch_axis
        if axis is None:
            return [(self.offset, self.nbytes)]
        outer = math.prod(self.shape[:axis])
        inner = math.prod(self.shape[axis + 1 :]) * element_type(self.dtype).nbytes
        return [(self.offset + (part * self.shape[axis] + row) * inner, inner) for part in range(outer)]


@dataclass(frozen=True)
class Tensor:
    """A tensor in a block of memory: what engines bind."""

    block: Block
    place: Place

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, as the graph has it."""
        return self.place.shape

    @property
    def dtype(self) -> str:
        """Element type, by the contract's name."""
        return self.place.dtype

    @property
    def address(self) -> int:
        """Address of its first element."""
        return self.block.address + self.place.offset

    @property
    def array(self) -> Array:
        """The tensor itself, in host memory alone; bfloat16 as its bits in uint16."""
        return self.place.view(self.block.host_buffer(self.place.offset, self.place.nbytes), self.place.offset)

    def read(self) -> Array:
        """A copy of it on the host."""
        array: Array = np.empty(self.shape, numpy_dtype(self.dtype))
        self.block.download(self.place.offset, array)
        return array

    def read_rows(self) -> Array:
        """The same with the batch axis first."""
        return self.place.rows(self.read().reshape(-1).view(np.uint8), self.place.offset)

    def write_rows(self, value: Array) -> None:
        """Replace it by a value from the host, with the batch axis first."""
        array: Array = np.empty(self.shape, numpy_dtype(self.dtype))
        self.place.rows(array.reshape(-1).view(np.uint8), self.place.offset)[...] = value
        self.block.upload(self.place.offset, array)


class HostMemory:
    """The host's own memory, addressed through numpy."""

    device = "cpu"
    alignment = 64
    on_host = True

    def allocate(self, nbytes: int) -> HostBlock:
        """See :meth:`Memory.allocate`.

        Raises:
            EdgememError: The machine has not so much memory.
        """
        try:
            if nbytes > _SURELY_THERE and nbytes > (total_bytes() or nbytes):
                raise MemoryError  # the system may promise more than it has
            return HostBlock(nbytes, self.alignment)
        except (MemoryError, ValueError, OverflowError) as error:
            raise EdgememError(
                f"the streams need {nbytes:,} bytes, more than this machine gives.",
                hint="Open a stream with a smaller batch, or export the model with a smaller memory or --max-chunk.",
            ) from error


class HostBlock:
    """A block of host memory."""

    def __init__(self, nbytes: int, alignment: int) -> None:
        whole = np.empty(nbytes + alignment, dtype=np.uint8)
        start = -whole.ctypes.data % alignment
        self._bytes: Bytes = whole[start : start + nbytes]
        self.address: int = self._bytes.ctypes.data
        self.nbytes = nbytes

    def host_buffer(self, offset: int, nbytes: int) -> Bytes:
        """See :meth:`Block.host_buffer`."""
        return self._bytes[offset : offset + nbytes]

    def upload(self, offset: int, array: Array) -> None:
        """See :meth:`Block.upload`."""
        self._bytes[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)

    def send(self, offset: int, buffer: Bytes) -> None:
        """See :meth:`Block.send`; the buffer is the block's own."""

    def download(self, offset: int, array: Array) -> None:
        """See :meth:`Block.download`."""
        array.reshape(-1).view(np.uint8)[...] = self._bytes[offset : offset + array.nbytes]

    def copy_from(self, source: Block, nbytes: int, dst: int = 0, src: int = 0) -> None:
        """See :meth:`Block.copy_from`."""
        self._bytes[dst : dst + nbytes] = source.host_buffer(src, nbytes)

    def copy_box(self, dst: int, src: int, box: Box) -> None:
        """See :meth:`Block.copy_box`."""
        self.copier(dst, src, box, 0, 1)(0)

    def copier(self, dst: int, src: int, box: Box, step: int, count: int) -> Callable[[int], None]:
        """See :meth:`Block.copier`."""
        box = box.flat()
        strides = (step, box.dst_slice, box.dst_pitch, box.src_slice, box.src_pitch)
        unit = math.gcd(8, box.width, dst, src, *strides)  # wide elements copy faster
        dtype = np.dtype(f"u{unit}")
        rows = (box.depth, box.height, box.width // unit)
        # np.ndarray refuses strides that leave the buffer, so a wrong layout cannot write elsewhere.
        targets: Array = np.ndarray((count, *rows), dtype, self._bytes, dst, (step, box.dst_slice, box.dst_pitch, unit))
        source: Array = np.ndarray(rows, dtype, self._bytes, src, (box.src_slice, box.src_pitch, unit))
        if box.depth == 1:
            targets, source = targets[:, 0], source[0]

        def copy(index: int) -> None:
            targets[index] = source

        return copy
