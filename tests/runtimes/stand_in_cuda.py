"""A stand-in for ``cuda.bindings.runtime`` that acts on host memory and follows CUDA's definition of each call.

A stream does its queued work when somebody waits: a result that is read without waiting is not there yet, and
page-locked memory that is overwritten too early spoils a pending copy. Copies from ordinary host memory take the bytes
immediately, and copies to it wait. During a capture work is recorded; launching the graph queues what was recorded.
Allocations are filled with NaN. Every device address that a copy touches must be inside a live allocation.
"""

# ruff: noqa: E731, N802, N815  (these are the names of the CUDA runtime)

from __future__ import annotations

import contextlib
import ctypes
import enum
import itertools
import threading
from collections import Counter, namedtuple
from collections.abc import Callable, Iterator
from operator import delitem
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any


class CudaError(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901


def _names(prefix: str, *names: str) -> Any:
    return enum.IntEnum(prefix, [prefix + name for name in names], start=0)


MemcpyKind = _names("cudaMemcpy", "HostToHost", "HostToDevice", "DeviceToHost", "DeviceToDevice")
CaptureMode = _names("cudaStreamCaptureMode", "Global", "ThreadLocal", "Relaxed")
DeviceAttribute = _names("cudaDevAttr", "Integrated", "ComputeCapabilityMajor", "ComputeCapabilityMinor")
NodeType = _names("cudaGraphNodeType", "Kernel", "Memcpy", "Host", "MemAlloc")
MemoryType = _names("cudaMemoryType", "Unregistered", "Host", "Device")
Pitched = namedtuple("Pitched", "ptr pitch xsize ysize")
Triple = namedtuple("Triple", "x y z")
Extent = namedtuple("Extent", "width height depth")


class Node(SimpleNamespace):
    """A node of a graph: its ``kind``, its ``work``, and the ``rows`` and ``width`` of a copy."""


class CallError(Exception):
    """Ends a call with an error code."""


def require(condition: Any, code: int = CudaError.cudaErrorInvalidValue) -> None:
    """End the call with ``code`` unless the condition holds."""
    if not condition:
        raise CallError(code)


def returning_codes(module: type) -> type:
    """Make each function ``cuda...`` of the class return its code, then its result if there is one; and count it."""

    def function(name: str, act: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
        def call(self: StandIn, *arguments: Any) -> tuple[Any, ...]:
            kind = f" {arguments[3].name[10:]}" if name == "cudaMemcpyAsync" else ""
            with self._lock:
                self.calls[name + kind] += "Free" not in name and "Destroy" not in name
            try:
                result = act(self, *arguments)
            except CallError as error:
                return error.args[0], None
            results = result if isinstance(result, tuple | None) else (result,)
            return (CudaError.cudaSuccess, *(results or ()))

        call.__name__ = name
        return call

    for name, act in list(vars(module).items()):
        if name.startswith("cuda") and isinstance(act, FunctionType):
            setattr(module, name, function(name, act))
    return module


@returning_codes
class StandIn(ModuleType):
    """The module.

    Attributes:
        calls: How often each function was called, except those that free something: the collector calls them.
        live, pinned: Device allocations and page-locked host allocations, by address.
        moved: Bytes that copies of each kind have moved, including those in graphs.
        at_once: Do the work of a stream when it is issued, for engines that ignore the stream.
        device_ms: The device's clock, which events read; only copies and work that a test queues advance it.
        copy_bytes_per_ms: Speed of copies; by default they take no time.
    """

    cudaMemcpyKind, cudaError_t, cudaStreamCaptureMode = MemcpyKind, CudaError, CaptureMode
    cudaDeviceAttr, cudaStreamDefault, cudaStreamNonBlocking, cudaHostAllocDefault = DeviceAttribute, 0, 1, 0
    cudaMemcpy3DParms = staticmethod(lambda: SimpleNamespace(srcPos=Triple(0, 0, 0), dstPos=Triple(0, 0, 0)))

    def __init__(
        self, devices: int = 1, limit: int = 1 << 30, status: int = 0, driver: int = 12060, runtime: int = 12060
    ) -> None:
        super().__init__("cuda.bindings.runtime")
        self.devices, self.limit, self.status, self.driver, self.runtime = devices, limit, status, driver, runtime
        self.at_once = self.integrated = False
        self.live, self.pinned = dict[int, Any](), dict[int, Any]()
        self.streams, self.events = dict[int, Any](), dict[int, Any]()
        self.graphs, self.executables = dict[int, Any](), dict[int, Any]()
        self.calls, self.moved = Counter[str](), Counter[str]()
        self.device_ms, self.copy_bytes_per_ms = 0.0, float("inf")
        self._handles, self._lock = itertools.count(0x5EED), threading.RLock()
        self.make_cudaPitchedPtr, self.make_cudaPos, self.make_cudaExtent = Pitched, Triple, Triple

    @contextlib.contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Gives the calls that are made inside the block, after it."""
        before, during = self.calls.copy(), Counter[str]()
        yield during
        during.update(self.calls - before)

    def _add(self, where: dict[int, Any], what: Any) -> int:
        handle = next(self._handles)
        where[handle] = what
        return handle

    # The device.

    cudaDriverGetVersion = lambda self: self.driver
    cudaRuntimeGetVersion = lambda self: self.runtime
    cudaGetLastError = lambda self: None
    cudaGetDeviceProperties = lambda self, device: SimpleNamespace(name=b"Stand-in\0")
    cudaDeviceGetAttribute = lambda self, attribute, device: (int(self.integrated), 8, 9)[attribute]
    cudaDeviceGetPCIBusId = lambda self, length, device: b"0000:01:00.0".ljust(length, b"\0")
    # A device must be asked for before it is used.
    cudaSetDevice = lambda self, device: require(self.calls["cudaGetDeviceCount"] and device < self.devices)
    cudaGetDeviceCount = lambda self: require(not self.status, self.status) or self.devices

    # Memory.

    cudaMemGetInfo = lambda self: (self.limit - sum(map(len, self.live.copy().values())), self.limit)
    cudaHostAlloc = lambda self, nbytes, flags: _allocate(self.pinned, nbytes, 4096)
    cudaFree = lambda self, address: self.drain() or delitem(self.live, address)
    cudaFreeHost = lambda self, address: self.drain() or delitem(self.pinned, address)

    def cudaMalloc(self, nbytes: int) -> int:
        require(not self.forbids_allocation(), CudaError.cudaErrorStreamCaptureUnsupported)
        require(nbytes <= self.cudaMemGetInfo()[1], CudaError.cudaErrorMemoryAllocation)
        return _allocate(self.live, nbytes, 256)

    def home(self, address: int, nbytes: int) -> str:
        """Where the bytes are: in one allocation of ``"Device"`` or ``"pinned"`` memory, or in ``"other"`` memory."""
        for name, blocks in (("Device", self.live), ("pinned", self.pinned)):
            # A copy: the collector may run at any moment, and free.
            if any(start <= address <= start + len(block) - nbytes for start, block in blocks.copy().items()):
                return name
        return "other"

    # Streams.

    cudaStreamDestroy = lambda self, stream: self.wait(stream) or delitem(self.streams, stream)
    cudaStreamSynchronize = lambda self, stream: self.wait(stream)

    def cudaStreamCreateWithFlags(self, flags: int) -> int:
        # A capture fills ``recording``, which is None otherwise.
        return self._add(self.streams, SimpleNamespace(queue=[], recording=None, spoilt=False, thread=0))

    def enqueue(self, stream: int, work: Callable[[], Any], kind: str = "Kernel", **about: Any) -> None:
        """Queue or record work of a stream: copies, and the kernels of an engine."""
        found = self.streams[stream]
        if found.recording is None:
            found.queue.append(work)
        else:
            found.recording.append(Node(kind=NodeType[f"cudaGraphNodeType{kind}"], work=work, **about))
        if self.at_once and found.recording is None:
            self.wait(stream)

    def capturing(self, stream: int) -> bool:
        """Whether the stream is being captured."""
        return self.streams[stream].recording is not None

    def forbids_allocation(self) -> bool:
        """Whether a capture that is in progress forbids this thread to allocate."""
        here = threading.get_ident()
        return any(each.recording is not None and each.thread == here for each in self.streams.copy().values())

    def refuse_in_capture(self, stream: int) -> None:
        """Fail if the stream is being captured, which spoils the capture."""
        self.streams[stream].spoilt |= self.capturing(stream)
        require(not self.capturing(stream), CudaError.cudaErrorStreamCaptureUnsupported)

    def wait(self, stream: int) -> None:
        """Do everything that is queued in a stream."""
        self.refuse_in_capture(stream)
        queue = self.streams[stream].queue
        with self._lock:
            # Taken out first: the collector may free something in the middle of a copy, which waits again.
            for work in [queue.pop(0) for _ in range(len(queue))]:
                work()

    def drain(self) -> None:
        """The same for every stream that is not being captured."""
        for handle, stream in self.streams.copy().items():
            if stream.recording is None:
                self.wait(handle)

    # Copies.

    cudaMemcpyAsync = lambda self, dst, src, count, kind, stream: self.copy([(dst, src)], count, kind, stream)

    def cudaMemcpy2DAsync(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: Any, stream: int
    ) -> None:
        require(width <= min(dpitch, spitch))
        self.copy([(dst + y * dpitch, src + y * spitch) for y in range(height)], width, kind, stream)

    def cudaMemcpy3DAsync(self, p: Any, stream: int) -> None:
        require(p.extent.x <= min(p.dstPtr.pitch, p.srcPtr.pitch))
        sides = ((p.dstPtr, p.dstPos), (p.srcPtr, p.srcPos))
        rows = [
            tuple(base.ptr + pos.x + (pos.y + y + (pos.z + z) * base.ysize) * base.pitch for base, pos in sides)
            for y, z in itertools.product(range(p.extent.y), range(p.extent.z))
        ]
        self.copy(rows, p.extent.x, p.kind, stream)

    def copy(self, rows: list[tuple[Any, ...]], width: int, kind: Any, stream: int) -> None:
        """Queue a copy of rows of ``width`` bytes; each row is its destination and its source."""
        source, destination = kind.name[10:].split("To")
        homes = {address: self.home(address, width) for row in rows for address in row}
        on_device = (destination == "Device", source == "Device")
        require(all((homes[dst] == "Device", homes[src] == "Device") == on_device for dst, src in rows))
        ordinary = "other" in homes.values()
        if ordinary:
            self.refuse_in_capture(stream)
        if ordinary and source == "Host":
            rows = [(dst, ctypes.string_at(src, width)) for dst, src in rows]

        def work() -> None:
            for address, home in homes.items():
                assert home in ("other", self.home(address, width)), "memory was freed before a copy was done"
            for dst, src in rows:
                ctypes.memmove(dst, src, width)
            with self._lock:
                self.moved[kind.name[10:]] += width * len(rows)
                self.device_ms += width * len(rows) / self.copy_bytes_per_ms

        self.enqueue(stream, work, "Memcpy", rows=rows, width=width)
        if ordinary and source == "Device":
            self.wait(stream)

    # Events.

    cudaEventCreate = lambda self: self._add(self.events, None)
    cudaEventElapsedTime = lambda self, start, end: self.events[end] - self.events[start]
    cudaEventDestroy = lambda self, event: delitem(self.events, event)

    def cudaEventRecord(self, event: int, stream: int) -> None:
        if not self.capturing(stream):
            self.events[event] = None
        self.enqueue(stream, lambda: self.events.update({event: self.device_ms}))

    # Graphs.

    cudaGraphInstantiate = lambda self, graph, flags: self._add(
        self.executables, [node.work for node in self.graphs[graph]]
    )
    cudaGraphGetNodes = lambda self, graph, count=0: (self.graphs[graph][:count], len(self.graphs[graph]))
    cudaGraphNodeGetType = lambda self, node: node.kind
    cudaGraphNodeType, cudaMemoryType = NodeType, MemoryType
    cudaGraphDestroy = lambda self, graph: delitem(self.graphs, graph)
    cudaGraphExecDestroy = lambda self, executable: delitem(self.executables, executable)

    def cudaGraphMemcpyNodeGetParams(self, node: Node) -> Any:
        (dst, src), *more = node.rows
        ends = (Pitched(address, node.width, node.width, 1 + len(more)) for address in (dst, src))
        return SimpleNamespace(dstPtr=next(ends), srcPtr=next(ends), extent=Extent(node.width, 1 + len(more), 1))

    def cudaGraphMemcpyNodeSetParams1D(self, node: Node, dst: int, src: int, count: int, kind: Any) -> None:
        require(self.home(src, count) == "pinned" and self.home(dst, count) == "Device")
        node.rows, node.work = [(dst, src)], lambda: ctypes.memmove(dst, src, count)

    def cudaPointerGetAttributes(self, address: int) -> Any:
        home = {"Device": "Device", "pinned": "Host", "other": "Unregistered"}[self.home(address, 1)]
        return SimpleNamespace(type=MemoryType[f"cudaMemoryType{home}"])

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:
        require(not self.capturing(stream) and mode == CaptureMode.cudaStreamCaptureModeThreadLocal)
        self.streams[stream].recording, self.streams[stream].spoilt = [], False
        self.streams[stream].thread = threading.get_ident()

    def cudaStreamEndCapture(self, stream: int) -> int:
        found = self.streams[stream]
        recorded, found.recording = found.recording, None
        require(recorded is not None and not found.spoilt, CudaError.cudaErrorStreamCaptureInvalidated)
        return self._add(self.graphs, recorded)

    def cudaGraphLaunch(self, executable: int, stream: int) -> None:
        for work in self.executables[executable]:
            self.enqueue(stream, work)


def _allocate(where: dict[int, Any], nbytes: int, alignment: int) -> int:
    buffer = (ctypes.c_ubyte * (nbytes + alignment))()
    ctypes.memset(buffer, 0xFF, len(buffer))  # as float32 NaN
    start = -(-ctypes.addressof(buffer) // alignment) * alignment
    where[start] = (ctypes.c_ubyte * nbytes).from_buffer(buffer, start - ctypes.addressof(buffer))
    return start
