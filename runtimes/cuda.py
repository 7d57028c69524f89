"""Device memory through the CUDA runtime, by ``cuda.bindings.runtime`` alone.

This has not run on a GPU here; its address arithmetic is tested over a stand-in for ``cuda.bindings.runtime`` that acts
on host memory by CUDA's definition of each call.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from edgemem.errors import EdgememError, RuntimeUnavailableError
from edgemem.runtimes.memory import Array, Block, Box, Bytes

_HINT = 'pip install "edgemem[gpu]"'


class CudaMemory:
    """The memory of one CUDA device, with a stream in which every copy is issued.

    Attributes:
        stream: Address of the ``cudaStream_t``, for an engine that is to work in the same order.

    Raises:
        RuntimeUnavailableError: cuda-python is not installed, or there is no working CUDA device.
    """

    device = "cuda"
    alignment = 256  # TensorRT asks for it; cudaMalloc gives it
    on_host = False

    def __init__(self, device_id: int = 0) -> None:
        try:
            self.api: Any = importlib.import_module("cuda.bindings.runtime")
        except ImportError as error:
            raise RuntimeUnavailableError(f"cuda.bindings.runtime cannot be imported: {error}", hint=_HINT) from error
        # Asked before anything else: some libraries crash where CUDA does not start.
        code, count = self.api.cudaGetDeviceCount()
        if int(code) != 0 or count <= device_id:
            why = _describe(self.api, code) if int(code) != 0 else f"{count} devices"
            raise RuntimeUnavailableError(
                f"CUDA device {device_id} cannot be used: {why}.",
                hint="Check the NVIDIA driver with nvidia-smi, or use device='cpu'.",
            )
        self.call(self.api.cudaSetDevice, device_id)
        self._stream = self.call(self.api.cudaStreamCreate)
        self.stream = int(self._stream)
        self._finalizer = weakref.finalize(self, self.api.cudaStreamDestroy, self._stream)

    def call(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        """Call a function of the CUDA runtime and check its code.

        Returns:
            What it gives besides the code, if anything.

        Raises:
            EdgememError: The code is an error.
        """
        code, *values = function(*arguments)
        if int(code) != 0:
            raise EdgememError(f"{getattr(function, '__name__', function)} failed: {_describe(self.api, code)}.")
        return values[0] if values else None

    def allocate(self, nbytes: int) -> CudaBlock:
        """See :meth:`edgemem.runtimes.memory.Memory.allocate`."""
        return CudaBlock(self, nbytes)

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


class CudaBlock:
    """A block of device memory."""

    def __init__(self, memory: CudaMemory, nbytes: int) -> None:
        self._memory = memory
        self.address = int(memory.call(memory.api.cudaMalloc, max(nbytes, 1)))
        self.nbytes = nbytes
        # cudaFree waits for the device, so nothing issued before can still use the block.
        self._finalizer = weakref.finalize(self, memory.api.cudaFree, self.address)

    def host_buffer(self, offset: int, nbytes: int) -> Bytes:
        """See :meth:`edgemem.runtimes.memory.Block.host_buffer`."""
        return np.zeros(nbytes, dtype=np.uint8)

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


def _describe(api: Any, code: Any) -> str:
    name = getattr(code, "name", str(code))
    return f"{name} ({int(code)})"
