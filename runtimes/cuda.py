"""Device memory through the CUDA runtime, by ``cuda.bindings.runtime`` alone.

It ran on an H200 under ONNX Runtime. Its address arithmetic, its order of work and its graphs are also tested over a
stand-in for ``cuda.bindings.runtime`` that acts on host memory by CUDA's definition of each call.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from edgemem.errors import EdgememError
from edgemem.machine.cuda import cuda_runtime, describe_code
from edgemem.runtimes.captured import CapturedGraph
from edgemem.runtimes.gate import Gate
from edgemem.runtimes.memory import Array, Block, Box, Bytes


class CallObserver(Protocol):
    """Sees every call of :meth:`CudaMemory.call`, to time it. Calls it makes itself are seen too."""

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """The function of this name is about to be called."""

    def after(self, name: str, arguments: tuple[Any, ...]) -> None:
        """The function of this name has returned."""


class CudaMemory:
    """The memory of one CUDA device, with a stream in which every copy is issued.

    Args:
        device_id: Number of the device.
        blocking: Whether the stream waits for work in CUDA's default stream, and that for it. An engine that does
            part of its work there needs it; a stream that is captured must not.

    Attributes:
        device_id: Number of the device.
        stream: Address of the ``cudaStream_t``, for an engine that is to work in the same order.
        observer: Sees the calls while it is set.
        gate: Keeps other threads' calls out of a recording, where several threads use the stream.

    Raises:
        RuntimeUnavailableError: cuda-bindings is not installed, or there is no working CUDA device.
    """

    device = "cuda"
    alignment = 256  # TensorRT asks for it; cudaMalloc gives it
    on_host = False
    observer: CallObserver | None = None
    gate: Gate | None = None

    def __init__(self, device_id: int = 0, *, blocking: bool = True) -> None:
        # Before anything else: some libraries crash if CUDA does not start.
        self.api: Any = cuda_runtime(device_id)
        self.device_id = device_id
        self.call(self.api.cudaSetDevice, device_id)
        flags = self.api.cudaStreamDefault if blocking else self.api.cudaStreamNonBlocking
        self._stream = self.call(self.api.cudaStreamCreateWithFlags, flags)
        self.stream = int(self._stream)
        self._pinned: dict[int, int] = {}  # address -> bytes
        self._finalizer = weakref.finalize(self, self.api.cudaStreamDestroy, self._stream)

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and check its code.

        Returns:
            What it gives besides the code, if anything.

        Raises:
            EdgememError: The code is an error.
        """
        gate = self.gate
        if gate is None:
            code, *values = self._observed(function, arguments)
        else:
            with gate:
                code, *values = self._observed(function, arguments)
        if int(code) != 0:
            raise EdgememError(f"{getattr(function, '__name__', function)} failed: {describe_code(code)}.")
        return values[0] if values else None

    def _observed(self, function: Callable[..., tuple[Any, ...]], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        observer = self.observer
        if observer is None:
            return function(*arguments)
        name = getattr(function, "__name__", "")
        observer.before(name, arguments)
        results = function(*arguments)
        observer.after(name, arguments)
        return results

    def allocate(self, nbytes: int) -> CudaBlock:
        """See :meth:`edgemem.runtimes.memory.Memory.allocate`."""
        return CudaBlock(self, nbytes)

    def aligned(self, nbytes: int) -> int:
        """``nbytes`` rounded up to the alignment."""
        return -(-nbytes // self.alignment) * self.alignment

    def malloc(self, nbytes: int) -> int:
        """Address of new device memory.

        Raises:
            EdgememError: The device is full; the message says what was asked and what there is.
        """
        code, address = self.api.cudaMalloc(max(nbytes, 1))
        if int(code) == 0:
            return int(address)
        self.api.cudaGetLastError()  # a failed allocation leaves the device usable: later calls must not report it
        if code != self.api.cudaError_t.cudaErrorMemoryAllocation:
            raise EdgememError(f"cudaMalloc failed: {describe_code(code)}.")
        raise EdgememError(
            f"cudaMalloc failed: {describe_code(code)}: {nbytes:,} bytes were asked for; {self.free_text()}.",
            hint="Close what else uses the GPU, take fewer streams or a smaller batch, or export with a smaller memory "
            "or precision.",
        )

    def free_text(self) -> str:
        """How much device memory is free, in words."""
        code, free, total = self.api.cudaMemGetInfo()
        return f"of {total:,} bytes {free:,} are free" if int(code) == 0 else "how much is free is not known"

    def copy(self, dst: int, src: int, nbytes: int, kind: str) -> None:
        """Issue ``cudaMemcpyAsync``; ``kind`` is the rest of a ``cudaMemcpyKind``'s name."""
        how = getattr(self.api.cudaMemcpyKind, f"cudaMemcpy{kind}")
        self.call(self.api.cudaMemcpyAsync, dst, src, nbytes, how, self._stream)

    def copy_rows(self, dst: int, dst_pitch: int, src: int, src_pitch: int, width: int, height: int) -> None:
        """Issue ``cudaMemcpy2DAsync`` within the device."""
        how = self.api.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self.call(self.api.cudaMemcpy2DAsync, dst, dst_pitch, src, src_pitch, width, height, how, self._stream)

    def copy_slices(self, parameters: Any) -> None:
        """Issue ``cudaMemcpy3DAsync``."""
        self.call(self.api.cudaMemcpy3DAsync, parameters, self._stream)

    def synchronize(self) -> None:
        """Wait until everything issued is done."""
        self.call(self.api.cudaStreamSynchronize, self._stream)

    def capture(self, issue: Callable[[], None], *, constants: bool = False) -> CapturedGraph:
        """Record what ``issue`` puts into the stream, without running it; see :class:`CapturedGraph`."""
        with self.gate.alone() if self.gate is not None else contextlib.nullcontext():
            return CapturedGraph(self, self._stream, issue, constants=constants)

    def pinned(self, nbytes: int) -> Bytes:
        """New page-locked host memory, which the device copies itself."""
        return np.asarray(_Pinned(self, nbytes))

    def is_own(self, address: int) -> bool:
        """Whether the address lies in page-locked memory of :meth:`pinned`."""
        return any(start <= address < start + nbytes for start, nbytes in list(self._pinned.items()))


class _Pinned:
    """Page-locked host memory as an array; it is freed when neither this nor an array made of it is referred to."""

    def __init__(self, memory: CudaMemory, nbytes: int) -> None:
        address = int(memory.call(memory.api.cudaHostAlloc, max(nbytes, 1), memory.api.cudaHostAllocDefault))
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, False)}
        memory._pinned[address] = nbytes
        self._finalizer = weakref.finalize(self, _free_pinned, memory.api, memory._pinned, address)


def _free_pinned(api: Any, pinned: dict[int, int], address: int) -> None:
    pinned.pop(address, None)
    api.cudaFreeHost(address)


class CudaBlock:
    """A block of device memory."""

    def __init__(self, memory: CudaMemory, nbytes: int) -> None:
        self._memory = memory
        self.address = memory.malloc(nbytes)
        self.nbytes = nbytes
        # cudaFree waits for the device, so nothing issued before can still use the block.
        self._finalizer = weakref.finalize(self, memory.api.cudaFree, self.address)

    def host_buffer(self, offset: int, nbytes: int) -> Bytes:
        """See :meth:`edgemem.runtimes.memory.Block.host_buffer`; page-locked, so that the device copies it itself."""
        self._inside(offset, nbytes)
        buffer = self._memory.pinned(nbytes)
        buffer[...] = 0
        return buffer

    def upload(self, offset: int, array: Array) -> None:
        """See :meth:`edgemem.runtimes.memory.Block.upload`."""
        self.send(offset, array)
        self._memory.synchronize()

    def send(self, offset: int, buffer: Array) -> None:
        """See :meth:`edgemem.runtimes.memory.Block.send`."""
        self._inside(offset, buffer.nbytes)
        self._memory.copy(self.address + offset, buffer.ctypes.data, buffer.nbytes, "HostToDevice")

    def download(self, offset: int, array: Array) -> None:
        """See :meth:`edgemem.runtimes.memory.Block.download`."""
        self._inside(offset, array.nbytes)
        self._memory.copy(array.ctypes.data, self.address + offset, array.nbytes, "DeviceToHost")
        self._memory.synchronize()

    def copy_from(self, source: Block, nbytes: int, dst: int = 0, src: int = 0) -> None:
        """See :meth:`edgemem.runtimes.memory.Block.copy_from`."""
        self._inside(dst, nbytes)
        self._memory.copy(self.address + dst, source.address + src, nbytes, "DeviceToDevice")

    def copy_box(self, dst: int, src: int, box: Box) -> None:
        """See :meth:`edgemem.runtimes.memory.Block.copy_box`."""
        self.copier(dst, src, box, 0, 1)(0)

    def copier(self, dst: int, src: int, box: Box, step: int, count: int) -> Callable[[int], None]:
        """See :meth:`edgemem.runtimes.memory.Block.copier`."""
        box = box.flat()
        last = (box.depth - 1, box.height - 1)
        self._inside(dst, (count - 1) * step + last[0] * box.dst_slice + last[1] * box.dst_pitch + box.width)
        self._inside(src, last[0] * box.src_slice + last[1] * box.src_pitch + box.width)
        memory, to, of = self._memory, self.address + dst, self.address + src
        if box.depth == 1:

            def copy_rows(index: int) -> None:
                memory.copy_rows(to + index * step, box.dst_pitch, of, box.src_pitch, box.width, box.height)

            return copy_rows
        if box.dst_slice % box.dst_pitch == 0 and box.src_slice % box.src_pitch == 0:
            api = memory.api
            parameters = api.cudaMemcpy3DParms()
            # A slice of a pitched pointer is pitch × ysize bytes: ysize carries the distance between slices.
            parameters.dstPtr = api.make_cudaPitchedPtr(to, box.dst_pitch, box.width, box.dst_slice // box.dst_pitch)
            parameters.srcPtr = api.make_cudaPitchedPtr(of, box.src_pitch, box.width, box.src_slice // box.src_pitch)
            parameters.extent = api.make_cudaExtent(box.width, box.height, box.depth)
            parameters.kind = api.cudaMemcpyKind.cudaMemcpyDeviceToDevice

            def copy_slices(index: int) -> None:
                parameters.dstPos = api.make_cudaPos(index * step, 0, 0)
                memory.copy_slices(parameters)

            return copy_slices

        def copy_each(index: int) -> None:
            for n in range(box.depth):
                target, source = to + index * step + n * box.dst_slice, of + n * box.src_slice
                memory.copy_rows(target, box.dst_pitch, source, box.src_pitch, box.width, box.height)

        return copy_each

    def _inside(self, offset: int, nbytes: int) -> None:
        if offset < 0 or offset + nbytes > self.nbytes:
            raise ValueError(f"bytes {offset} to {offset + nbytes} of a block of {self.nbytes}")
