"""The machine's own ``libcudart`` by ctypes, with the names and results of ``cuda.bindings.runtime``.

A Jetson has JetPack's libcudart. PyPI's aarch64 wheels of cuda-bindings are built for servers, and may be missing. Only
the calls that edgemem makes are here. Handles and addresses are whole numbers. CUDA 12 and 13 declare the calls alike.
"""

# ruff: noqa: N802, N815  (these are the names of the CUDA runtime)

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable
from ctypes import POINTER, c_char, c_char_p, c_float, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from types import SimpleNamespace
from typing import Any

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so", "/usr/local/cuda/lib64/libcudart.so")
_CALLS: dict[str, tuple[Any, ...]] = {
    "cudaDriverGetVersion": ([c_int],),
    "cudaRuntimeGetVersion": ([c_int],),
    "cudaGetDeviceCount": ([c_int],),
    "cudaDeviceGetAttribute": ([c_int], c_int, c_int),
    "cudaSetDevice": (c_int,),
    "cudaGetLastError": (),
    "cudaMemGetInfo": ([c_size_t], [c_size_t]),
    "cudaMalloc": ([c_size_t], c_size_t),
    "cudaFree": (c_void_p,),
    "cudaHostAlloc": ([c_size_t], c_size_t, c_uint),
    "cudaFreeHost": (c_void_p,),
    "cudaMemcpyAsync": (c_void_p, c_void_p, c_size_t, c_int, c_void_p),
    "cudaMemcpy2DAsync": (c_void_p, c_size_t, c_void_p, c_size_t, c_size_t, c_size_t, c_int, c_void_p),
    "cudaStreamCreateWithFlags": ([c_size_t], c_uint),
    "cudaStreamDestroy": (c_void_p,),
    "cudaStreamSynchronize": (c_void_p,),
    "cudaStreamBeginCapture": (c_void_p, c_int),
    "cudaStreamEndCapture": (c_void_p, [c_size_t]),
    "cudaGraphInstantiate": ([c_size_t], c_void_p, c_ulonglong),
    "cudaGraphLaunch": (c_void_p, c_void_p),
    "cudaGraphDestroy": (c_void_p,),
    "cudaGraphExecDestroy": (c_void_p,),
    "cudaEventCreate": ([c_size_t],),
    "cudaEventRecord": (c_void_p, c_void_p),
    "cudaEventElapsedTime": ([c_float], c_void_p, c_void_p),
    "cudaEventDestroy": (c_void_p,),
}
"""The types of each call's parameters; a list of one type is a result, which the call writes through a pointer."""
_NAME_BYTES, _PROPERTIES_BYTES = 256, 1 << 14  # the name stands first; the rest grows from version to version


def _enum(prefix: str, **values: int) -> Any:
    return enum.IntEnum(prefix, {prefix + name: value for name, value in values.items()})


class _Pos(ctypes.Structure):
    """``cudaPos`` and ``cudaExtent``: three sizes."""

    _fields_ = (("x", c_size_t), ("y", c_size_t), ("z", c_size_t))


class _PitchedPtr(ctypes.Structure):
    _fields_ = (("ptr", c_void_p), ("pitch", c_size_t), ("xsize", c_size_t), ("ysize", c_size_t))


class _Memcpy3DParms(ctypes.Structure):
    _fields_ = (
        *(("srcArray", c_void_p), ("srcPos", _Pos), ("srcPtr", _PitchedPtr)),
        *(("dstArray", c_void_p), ("dstPos", _Pos), ("dstPtr", _PitchedPtr)),
        *(("extent", _Pos), ("kind", c_int)),
    )


class Code(int):
    """An error code with its name."""

    name = ""


class Cudart:
    """The calls of a loaded libcudart. Each returns its :class:`Code`, then its results.

    Args:
        name: The library's name or path.

    Raises:
        OSError: There is no such library.
        AttributeError: It lacks a call.
    """

    cudaMemcpyKind = _enum("cudaMemcpy", HostToHost=0, HostToDevice=1, DeviceToHost=2, DeviceToDevice=3)
    cudaStreamCaptureMode = _enum("cudaStreamCaptureMode", Global=0, ThreadLocal=1, Relaxed=2)
    cudaDeviceAttr = _enum("cudaDevAttr", Integrated=18, ComputeCapabilityMajor=75, ComputeCapabilityMinor=76)
    cudaError_t = _enum("cudaError", MemoryAllocation=2)
    cudaStreamDefault, cudaStreamNonBlocking, cudaHostAllocDefault = 0, 1, 0
    cudaMemcpy3DParms, make_cudaPitchedPtr, make_cudaPos, make_cudaExtent = _Memcpy3DParms, _PitchedPtr, _Pos, _Pos

    def __init__(self, name: str) -> None:
        self.name = name
        self._library = ctypes.CDLL(name)
        self._library.cudaGetErrorName.restype = c_char_p
        for call, parameters in _CALLS.items():
            setattr(self, call, self._call(call, parameters))
        self._copy_3d = self._call("cudaMemcpy3DAsync", (POINTER(_Memcpy3DParms), c_void_p))
        self._pci_bus_id = self._call("cudaDeviceGetPCIBusId", (c_char_p, c_int, c_int))
        self._properties = self._call("cudaGetDeviceProperties", (c_void_p, c_int))

    def _call(self, name: str, parameters: tuple[Any, ...]) -> Callable[..., tuple[Any, ...]]:
        function = getattr(self._library, name)
        function.argtypes = [POINTER(each[0]) if isinstance(each, list) else each for each in parameters]

        def call(*arguments: Any) -> tuple[Any, ...]:
            given = iter(arguments)
            values = [each[0]() if isinstance(each, list) else next(given) for each in parameters]
            code = self._code(function(*values))
            return (code, *(value.value for value, each in zip(values, parameters, strict=True) if type(each) is list))

        call.__name__ = name
        return call

    def _code(self, number: int) -> Code:
        code = Code(number)
        if number:
            code.name = (self._library.cudaGetErrorName(number) or b"").decode()
        return code

    def cudaMemcpy3DAsync(self, parameters: _Memcpy3DParms, stream: int) -> tuple[Any, ...]:
        """Copy boxes of bytes."""
        return self._copy_3d(ctypes.byref(parameters), stream)

    def cudaDeviceGetPCIBusId(self, length: int, device: int) -> tuple[Any, ...]:
        """The bus of a device, as ASCII."""
        text = ctypes.create_string_buffer(length)
        return (*self._pci_bus_id(text, length, device), text.value)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, ...]:
        """The properties of a device; only its ``name``."""
        properties = (c_char * _PROPERTIES_BYTES)()
        return (*self._properties(properties, device), SimpleNamespace(name=properties.raw[:_NAME_BYTES]))


def find_cudart() -> Cudart | None:
    """The first of :data:`LIBRARIES` that can be loaded; ``None`` if there is none."""
    for name in LIBRARIES:
        try:
            return Cudart(name)
        except (OSError, AttributeError):
            continue
    return None
