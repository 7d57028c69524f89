"""A stand-in for ``cuda.bindings.runtime`` that acts on host memory, each call by CUDA's definition of it.

Allocations are poisoned, and every device address that a copy touches must lie in a live allocation: pitches are those
of the CUDA runtime's reference, where slice ``z`` of a pitched pointer starts ``z × pitch × ysize`` bytes on.
"""

# ruff: noqa: N802, N815  (the names are those of the CUDA runtime)

from __future__ import annotations

import ctypes
import enum
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

POISON = 0xFF  # a float32 of these bytes is NaN


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100


class MemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


@dataclass
class Pitched:
    ptr: int = 0
    pitch: int = 0
    xsize: int = 0
    ysize: int = 0


@dataclass
class Triple:
    x: int = 0
    y: int = 0
    z: int = 0


@dataclass
class Memcpy3D:
    srcPtr: Pitched = field(default_factory=Pitched)
    dstPtr: Pitched = field(default_factory=Pitched)
    srcPos: Triple = field(default_factory=Triple)
    dstPos: Triple = field(default_factory=Triple)
    extent: Triple = field(default_factory=Triple)
    kind: MemcpyKind = MemcpyKind.cudaMemcpyHostToHost


class StandIn(ModuleType):
    """The module; ``calls`` counts what was called, ``live`` holds the allocations."""

    cudaMemcpyKind = MemcpyKind
    cudaMemcpy3DParms = Memcpy3D
    cudaError_t = CudaError

    def __init__(self, devices: int = 1, limit: int = 1 << 30, status: CudaError = CudaError.cudaSuccess) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.limit, self.status = devices, limit, status
        self.live: dict[int, Any] = {}
        self.calls: dict[str, int] = {}
        self.make_cudaPitchedPtr = Pitched
        self.make_cudaPos = Triple
        self.make_cudaExtent = Triple

    def _count(self, name: str) -> None:
        self.calls[name] = self.calls.get(name, 0) + 1

    def _inside(self, address: int, nbytes: int) -> bool:
        return any(start <= address and address + nbytes <= start + len(buffer) for start, buffer in self.live.items())

    def _copy(self, dst: int, src: int, nbytes: int, kind: MemcpyKind) -> bool:
        device_dst = kind in (MemcpyKind.cudaMemcpyHostToDevice, MemcpyKind.cudaMemcpyDeviceToDevice)
        device_src = kind in (MemcpyKind.cudaMemcpyDeviceToHost, MemcpyKind.cudaMemcpyDeviceToDevice)
        if (device_dst, device_src) != (self._inside(dst, nbytes), self._inside(src, nbytes)):
            return False
        ctypes.memmove(dst, src, nbytes)
        return True

    def cudaGetDeviceCount(self) -> tuple[CudaError, int | None]:
        self._count("cudaGetDeviceCount")
        return (self.status, self.devices if self.status == 0 else None)

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:
        assert self.calls.get("cudaGetDeviceCount"), "the device must be asked for before it is used"
        return (CudaError.cudaSuccess if device < self.devices else CudaError.cudaErrorInvalidValue,)

    def cudaStreamCreate(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, 0x5EED

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        self._count("cudaStreamDestroy")
        return (CudaError.cudaSuccess if stream == 0x5EED else CudaError.cudaErrorInvalidValue,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:
        self._count("cudaStreamSynchronize")
        return (CudaError.cudaSuccess if stream == 0x5EED else CudaError.cudaErrorInvalidValue,)

    def cudaMalloc(self, nbytes: int) -> tuple[CudaError, int | None]:
        if nbytes > self.limit:
            return CudaError.cudaErrorMemoryAllocation, None
        buffer = (ctypes.c_ubyte * (nbytes + 256))()
        ctypes.memset(buffer, POISON, len(buffer))
        start = -(-ctypes.addressof(buffer) // 256) * 256
        self.live[start] = (ctypes.c_ubyte * nbytes).from_buffer(buffer, start - ctypes.addressof(buffer))
        return CudaError.cudaSuccess, start

    def cudaFree(self, address: int) -> tuple[CudaError]:
        return (CudaError.cudaSuccess if self.live.pop(address, None) else CudaError.cudaErrorInvalidValue,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: MemcpyKind, stream: int) -> tuple[CudaError]:
        self._count("cudaMemcpyAsync")
        good = stream == 0x5EED and self._copy(dst, src, count, kind)
        return (CudaError.cudaSuccess if good else CudaError.cudaErrorInvalidValue,)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: MemcpyKind, stream: int
    ) -> tuple[CudaError]:
        self._count("cudaMemcpy2DAsync")
        good = stream == 0x5EED and width <= min(dpitch, spitch)
        good = good and all(self._copy(dst + y * dpitch, src + y * spitch, width, kind) for y in range(height))
        return (CudaError.cudaSuccess if good else CudaError.cudaErrorInvalidValue,)

    def cudaMemcpy3DAsync(self, p: Memcpy3D, stream: int) -> tuple[CudaError]:
        self._count("cudaMemcpy3DAsync")
        width, height, depth = p.extent.x, p.extent.y, p.extent.z
        good = stream == 0x5EED and width <= min(p.dstPtr.pitch, p.srcPtr.pitch)

        def at(pointer: Pitched, pos: Triple, y: int, z: int) -> int:
            return pointer.ptr + pos.x + (pos.y + y) * pointer.pitch + (pos.z + z) * pointer.pitch * pointer.ysize

        good = good and all(
            self._copy(at(p.dstPtr, p.dstPos, y, z), at(p.srcPtr, p.srcPos, y, z), width, p.kind)
            for z in range(depth)
            for y in range(height)
        )
        return (CudaError.cudaSuccess if good else CudaError.cudaErrorInvalidValue,)
