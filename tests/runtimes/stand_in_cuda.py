"""A stand-in for ``cuda.bindings.runtime`` that acts on host memory, each call by CUDA's definition of it.

Work that a stream takes is queued and done when somebody waits for it, in the order of the stream: a result that is
read without waiting is not there yet, and page-locked memory that is written too early spoils a copy that is still to
come. Copies from ordinary host memory take the bytes at once, and copies to it wait, as CUDA says. Between the calls
that begin and end a capture the work is recorded and not done; a launch queues what was recorded.

Allocations are poisoned, and every device address that a copy touches must lie in a live allocation: pitches are those
of the CUDA runtime's reference, where slice ``z`` of a pitched pointer starts ``z × pitch × ysize`` bytes on.
"""

# ruff: noqa: N802, N815  (the names are those of the CUDA runtime)

from __future__ import annotations

import contextlib
import ctypes
import enum
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

POISON = 0xFF  # a float32 of these bytes is NaN

Work = Callable[[], None]


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidResourceHandle = 400
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorStreamCaptureUnmatched = 903


class MemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3


class CaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class DeviceAttribute(enum.IntEnum):
    cudaDevAttrIntegrated = 18
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


@dataclass
class Properties:
    name: bytes = b"Stand-in\0"


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


@dataclass
class Stream:
    """A queue of work; ``recording`` is the graph that a capture fills, ``None`` outside one."""

    queue: list[Work] = field(default_factory=list)
    recording: list[Work] | None = None
    spoilt: bool = False
    nonblocking: bool = False
    busy: bool = False
    mode: CaptureMode = CaptureMode.cudaStreamCaptureModeGlobal
    thread: int = 0


class StandIn(ModuleType):
    """The module.

    Attributes:
        calls: How often each function was called.
        live: Device allocations by address.
        pinned: Page-locked host allocations by address.
        moved: Bytes that copies of each kind have moved, launches of graphs included.
        streams: Streams by handle.
        at_once: Do the work of a stream when it is issued, for engines that do not look at the stream.
        device_ms: The device's clock, which events tell: it stands still but for what is said to take time.
        copy_bytes_per_ms: How fast copies are; ``None``: they take no time.
    """

    cudaMemcpyKind = MemcpyKind
    cudaMemcpy3DParms = Memcpy3D
    cudaError_t = CudaError
    cudaStreamCaptureMode = CaptureMode
    cudaDeviceAttr = DeviceAttribute
    cudaStreamDefault = 0
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(
        self,
        devices: int = 1,
        limit: int = 1 << 30,
        status: CudaError = CudaError.cudaSuccess,
        driver: int = 12060,
        runtime: int = 12060,
    ) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.limit, self.status = devices, limit, status
        self.driver, self.runtime = driver, runtime
        self.at_once = False
        self.integrated = False
        self.live: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.moved: dict[str, int] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Work]] = {}
        self.executables: dict[int, list[Work]] = {}
        self.events: dict[int, float | None] = {}
        self.device_ms = 0.0
        self.copy_bytes_per_ms: float | None = None
        self.calls: dict[str, int] = {}
        self._handles = itertools.count(0x5EED)
        self._lock = threading.RLock()
        self.make_cudaPitchedPtr = Pitched
        self.make_cudaPos = Triple
        self.make_cudaExtent = Triple

    @contextlib.contextmanager
    def counted(self) -> Iterator[dict[str, int]]:
        """Gives the calls that are made inside the block, once it is left."""
        before, during = dict(self.calls), {}
        yield during
        during |= {name: n - before.get(name, 0) for name, n in self.calls.items() if n != before.get(name, 0)}

    def _count(self, name: str) -> None:
        with self._lock:
            self.calls[name] = self.calls.get(name, 0) + 1

    # Memory.

    def inside(self, address: int, nbytes: int) -> bool:
        """Whether the bytes lie in one live device allocation."""
        return _inside(self.live, address, nbytes)

    def cudaGetDeviceCount(self) -> tuple[CudaError, int | None]:
        self._count("cudaGetDeviceCount")
        return (self.status, self.devices if self.status == 0 else None)

    def cudaDriverGetVersion(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, self.driver

    def cudaRuntimeGetVersion(self) -> tuple[CudaError, int]:
        return CudaError.cudaSuccess, self.runtime

    def cudaGetDeviceProperties(self, device: int) -> tuple[CudaError, Properties]:
        return CudaError.cudaSuccess, Properties()

    def cudaGetLastError(self) -> tuple[CudaError]:
        return (CudaError.cudaSuccess,)

    def cudaMemGetInfo(self) -> tuple[CudaError, int, int]:
        return CudaError.cudaSuccess, self.limit - sum(map(len, self.live.copy().values())), self.limit

    def cudaSetDevice(self, device: int) -> tuple[CudaError]:
        assert self.calls.get("cudaGetDeviceCount"), "the device must be asked for before it is used"
        return (CudaError.cudaSuccess if device < self.devices else CudaError.cudaErrorInvalidValue,)

    def cudaDeviceGetAttribute(self, attribute: DeviceAttribute, device: int) -> tuple[CudaError, int]:
        values = {
            DeviceAttribute.cudaDevAttrIntegrated: int(self.integrated),
            DeviceAttribute.cudaDevAttrComputeCapabilityMajor: 8,
            DeviceAttribute.cudaDevAttrComputeCapabilityMinor: 9,
        }
        return CudaError.cudaSuccess, values[attribute]

    def cudaDeviceGetPCIBusId(self, length: int, device: int) -> tuple[CudaError, bytes]:
        return CudaError.cudaSuccess, f"0000:{device + 1:02X}:00.0".encode().ljust(length, b"\0")

    def cudaMalloc(self, nbytes: int) -> tuple[CudaError, int | None]:
        self._count("cudaMalloc")
        if self.forbids_allocation():
            return CudaError.cudaErrorStreamCaptureUnsupported, None
        if nbytes + sum(map(len, self.live.copy().values())) > self.limit:
            return CudaError.cudaErrorMemoryAllocation, None
        return CudaError.cudaSuccess, _allocate(self.live, nbytes, 256)

    def cudaFree(self, address: int) -> tuple[CudaError]:
        self._drain_all()
        return (_free(self.live, address),)

    def cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[CudaError, int | None]:
        self._count("cudaHostAlloc")
        return CudaError.cudaSuccess, _allocate(self.pinned, nbytes, 4096)

    def cudaFreeHost(self, address: int) -> tuple[CudaError]:
        self._drain_all()
        return (_free(self.pinned, address),)

    # Streams.

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[CudaError, int]:
        handle = next(self._handles)
        self.streams[handle] = Stream(nonblocking=flags == self.cudaStreamNonBlocking)
        return CudaError.cudaSuccess, handle

    def cudaStreamDestroy(self, stream: int) -> tuple[CudaError]:
        self._count("cudaStreamDestroy")
        code = self._wait(stream)
        self.streams.pop(stream, None)
        return (code,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[CudaError]:
        self._count("cudaStreamSynchronize")
        return (self._wait(stream),)

    def enqueue(self, stream: int, work: Work) -> CudaError:
        """Queue, or record, what a stream is to do: copies come this way, and the kernels of an engine."""
        found = self.streams.get(stream)
        if found is None:
            return CudaError.cudaErrorInvalidResourceHandle
        if found.recording is not None:
            found.recording.append(work)
        else:
            found.queue.append(work)
            if self.at_once:
                self._wait(stream)
        return CudaError.cudaSuccess

    def capturing(self, stream: int) -> bool:
        """Whether a capture of the stream is under way."""
        return self.streams[stream].recording is not None

    def spoil(self, stream: int) -> None:
        """What a forbidden call makes of a capture."""
        self.streams[stream].spoilt = True

    def forbids_allocation(self) -> bool:
        """Whether a capture that is under way forbids this thread to allocate."""
        return any(
            stream.recording is not None
            and (
                stream.mode == CaptureMode.cudaStreamCaptureModeGlobal
                or (stream.mode, stream.thread) == (CaptureMode.cudaStreamCaptureModeThreadLocal, threading.get_ident())
            )
            for stream in self.streams.copy().values()
        )

    def _wait(self, stream: int) -> CudaError:
        found = self.streams.get(stream)
        if found is None:
            return CudaError.cudaErrorInvalidResourceHandle
        if found.recording is not None:
            found.spoilt = True
            return CudaError.cudaErrorStreamCaptureUnsupported
        with self._lock:
            # The collector may free something in the middle of a copy: what is under way must end first.
            if not found.busy:
                found.busy = True
                try:
                    while found.queue:
                        found.queue.pop(0)()
                finally:
                    found.busy = False
        return CudaError.cudaSuccess

    def _drain_all(self) -> None:
        for handle, stream in self.streams.copy().items():
            if stream.recording is None:
                self._wait(handle)

    # Copies.

    def _note(self, kind: MemcpyKind, nbytes: int) -> None:
        name = kind.name.removeprefix("cudaMemcpy")
        with self._lock:
            self.moved[name] = self.moved.get(name, 0) + nbytes

    def _copy(self, dst: int, src: int, width: int, rows: list[tuple[int, int]], kind: MemcpyKind, stream: int) -> Any:
        """Queue a copy of ``rows``: the offset of each from ``dst`` and from ``src``."""
        if stream not in self.streams:
            return CudaError.cudaErrorInvalidResourceHandle
        to_device = kind in (MemcpyKind.cudaMemcpyHostToDevice, MemcpyKind.cudaMemcpyDeviceToDevice)
        of_device = kind in (MemcpyKind.cudaMemcpyDeviceToHost, MemcpyKind.cudaMemcpyDeviceToDevice)

        def lie_right() -> bool:
            return all(
                (to_device, of_device) == (self.inside(dst + to, width), self.inside(src + of, width))
                for to, of in rows
            )

        if not lie_right():
            return CudaError.cudaErrorInvalidValue

        host = next((address for address, device in ((dst, to_device), (src, of_device)) if not device), None)
        pinned = host is not None and _inside(self.pinned, host, width)

        def work() -> None:
            assert lie_right(), "device memory was freed before a copy was done"
            assert host is None or not pinned or _inside(self.pinned, host, width), "host memory was freed before"
            for to, of in rows:
                ctypes.memmove(dst + to, src + of, width)
            self._note(kind, width * len(rows))
            self._copied(width * len(rows))

        if host is None or pinned:
            return self.enqueue(stream, work)
        if self.capturing(stream):
            self.spoil(stream)
            return CudaError.cudaErrorStreamCaptureUnsupported
        if of_device:
            self.enqueue(stream, work)
            return self._wait(stream)
        taken = [ctypes.string_at(src + of, width) for _, of in rows]

        def write() -> None:
            assert all(self.inside(dst + to, width) for to, _ in rows), "memory was freed before a copy was done"
            for (to, _), data in zip(rows, taken, strict=True):
                ctypes.memmove(dst + to, data, width)
            self._note(kind, width * len(rows))
            self._copied(width * len(rows))

        return self.enqueue(stream, write)

    def _copied(self, nbytes: int) -> None:
        if self.copy_bytes_per_ms is not None:
            self.device_ms += nbytes / self.copy_bytes_per_ms

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: MemcpyKind, stream: int) -> tuple[CudaError]:
        self._count(f"cudaMemcpyAsync {kind.name.removeprefix('cudaMemcpy')}")
        return (self._copy(dst, src, count, [(0, 0)], kind, stream),)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: MemcpyKind, stream: int
    ) -> tuple[CudaError]:
        self._count("cudaMemcpy2DAsync")
        if width > min(dpitch, spitch):
            return (CudaError.cudaErrorInvalidValue,)
        return (self._copy(dst, src, width, [(y * dpitch, y * spitch) for y in range(height)], kind, stream),)

    def cudaMemcpy3DAsync(self, p: Memcpy3D, stream: int) -> tuple[CudaError]:
        self._count("cudaMemcpy3DAsync")
        if p.extent.x > min(p.dstPtr.pitch, p.srcPtr.pitch):
            return (CudaError.cudaErrorInvalidValue,)

        def at(pointer: Pitched, pos: Triple, y: int, z: int) -> int:
            return pos.x + (pos.y + y) * pointer.pitch + (pos.z + z) * pointer.pitch * pointer.ysize

        rows = [
            (at(p.dstPtr, p.dstPos, y, z), at(p.srcPtr, p.srcPos, y, z))
            for z in range(p.extent.z)
            for y in range(p.extent.y)
        ]
        return (self._copy(p.dstPtr.ptr, p.srcPtr.ptr, p.extent.x, rows, p.kind, stream),)

    # Events.

    def cudaEventCreate(self) -> tuple[CudaError, int]:
        handle = next(self._handles)
        self.events[handle] = None
        return CudaError.cudaSuccess, handle

    def cudaEventRecord(self, event: int, stream: int) -> tuple[CudaError]:
        self._count("cudaEventRecord")
        if event not in self.events:
            return (CudaError.cudaErrorInvalidResourceHandle,)
        if not self.capturing(stream):
            self.events[event] = None

        def happen() -> None:
            self.events[event] = self.device_ms

        return (self.enqueue(stream, happen),)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[CudaError, float | None]:
        if start not in self.events or end not in self.events:
            return CudaError.cudaErrorInvalidResourceHandle, None
        began, ended = self.events[start], self.events[end]
        if began is None or ended is None:
            return CudaError.cudaErrorNotReady, None
        return CudaError.cudaSuccess, ended - began

    def cudaEventDestroy(self, event: int) -> tuple[CudaError]:
        known = event in self.events
        self.events.pop(event, None)
        return (CudaError.cudaSuccess if known else CudaError.cudaErrorInvalidResourceHandle,)

    # Graphs.

    def cudaStreamBeginCapture(self, stream: int, mode: CaptureMode) -> tuple[CudaError]:
        self._count("cudaStreamBeginCapture")
        if stream not in self.streams or self.capturing(stream):
            return (CudaError.cudaErrorInvalidValue,)
        found = self.streams[stream]
        found.recording, found.spoilt, found.mode, found.thread = [], False, mode, threading.get_ident()
        return (CudaError.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[CudaError, int | None]:
        self._count("cudaStreamEndCapture")
        found = self.streams[stream]
        recording, found.recording = found.recording, None
        if recording is None:
            return CudaError.cudaErrorStreamCaptureUnmatched, None
        if found.spoilt:
            return CudaError.cudaErrorStreamCaptureInvalidated, None
        handle = next(self._handles)
        self.graphs[handle] = recording
        return CudaError.cudaSuccess, handle

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[CudaError, int]:
        self._count("cudaGraphInstantiate")
        handle = next(self._handles)
        self.executables[handle] = list(self.graphs[graph])
        return CudaError.cudaSuccess, handle

    def cudaGraphDestroy(self, graph: int) -> tuple[CudaError]:
        return (CudaError.cudaSuccess if self.graphs.pop(graph, None) is not None else CudaError.cudaErrorInvalidValue,)

    def cudaGraphLaunch(self, executable: int, stream: int) -> tuple[CudaError]:
        self._count("cudaGraphLaunch")
        recorded = self.executables[executable]
        return (self.enqueue(stream, lambda: [work() for work in recorded] and None),)

    def cudaGraphExecDestroy(self, executable: int) -> tuple[CudaError]:
        gone = self.executables.pop(executable, None)
        return (CudaError.cudaSuccess if gone is not None else CudaError.cudaErrorInvalidValue,)


def _allocate(where: dict[int, Any], nbytes: int, alignment: int) -> int:
    buffer = (ctypes.c_ubyte * (nbytes + alignment))()
    ctypes.memset(buffer, POISON, len(buffer))
    start = -(-ctypes.addressof(buffer) // alignment) * alignment
    where[start] = (ctypes.c_ubyte * nbytes).from_buffer(buffer, start - ctypes.addressof(buffer))
    return start


def _free(where: dict[int, Any], address: int) -> CudaError:
    return CudaError.cudaSuccess if where.pop(address, None) is not None else CudaError.cudaErrorInvalidValue


def _inside(where: dict[int, Any], address: int, nbytes: int) -> bool:
    # A copy: the collector may run at any moment, and free.
    return any(start <= address and address + nbytes <= start + len(buffer) for start, buffer in where.copy().items())
