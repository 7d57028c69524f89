"""CUDA graphs: work of a stream that is recorded once and launched by one call ever after."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edgemem.errors import EdgememError
from edgemem.runtimes.memory import Bytes

if TYPE_CHECKING:
    from edgemem.runtimes.cuda import CudaMemory

_HARMLESS = {"Kernel", "Memcpy", "Memset", "Empty"}


class CapturedGraph:
    """What ``issue`` puts into a stream, recorded.

    Addresses and shapes are those of the recording. Where recording fails the stream is as it was.

    Args:
        memory: Whose stream it is.
        stream: The ``cudaStream_t``.
        issue: Puts the work into the stream. It must have run once before, so that the engine allocates nothing now.
        constants: Whether the engine itself copies from the host, tables that never change. The graph keeps its own
            copy of them, since the engine may use their memory for something else later.

    Raises:
        EdgememError: The work cannot be recorded.
    """

    def __init__(self, memory: CudaMemory, stream: Any, issue: Callable[[], None], *, constants: bool = False) -> None:
        api = memory.api
        self._memory, self._stream = memory, stream
        # Of this thread alone: other threads may allocate meanwhile.
        mode = api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        memory.call(api.cudaStreamBeginCapture, stream, mode)
        try:
            issue()
        except BaseException:
            # The recording must be ended also where it is spoilt, or the stream would stay unusable.
            code, graph = api.cudaStreamEndCapture(stream)
            if int(code) == 0 and int(graph):
                api.cudaGraphDestroy(graph)
            api.cudaGetLastError()
            raise
        try:
            graph = memory.call(api.cudaStreamEndCapture, stream)
        except EdgememError:
            api.cudaGetLastError()
            raise
        try:
            self._constants = keep_constants(memory, graph) if constants else []
            self._executable = memory.call(api.cudaGraphInstantiate, graph, 0)
        finally:
            api.cudaGraphDestroy(graph)
        self._finalizer = weakref.finalize(self, api.cudaGraphExecDestroy, self._executable)

    def launch(self) -> None:
        """Put the recorded work into the stream."""
        self._memory.call(self._memory.api.cudaGraphLaunch, self._executable, self._stream)


def keep_constants(memory: CudaMemory, graph: Any) -> list[Bytes]:
    """Let a graph copy from host memory of its own.

    Args:
        memory: Whose device it is.
        graph: The ``cudaGraph_t``, not yet instantiated. Its copies are redirected.

    Returns:
        The page-locked memory that they read from now on.

    Raises:
        EdgememError: The graph does something else on the host, such as calling a function.
    """
    api, kept = memory.api, list[Bytes]()
    for node in _nodes(api, graph):
        kind = memory.call(api.cudaGraphNodeGetType, node)
        name = kind.name.removeprefix("cudaGraphNodeType")
        if name not in _HARMLESS:
            raise EdgememError(f"the recording holds something that cannot be repeated safely ({name}).")
        if name != "Memcpy":
            continue
        copy = memory.call(api.cudaGraphMemcpyNodeGetParams, node)
        source, nbytes = int(copy.srcPtr.ptr), int(copy.extent.width)
        if not _on_device(memory, int(copy.dstPtr.ptr)):
            raise EdgememError("the recording writes to host memory, which may serve something else later.")
        if memory.is_own(source) or _on_device(memory, source):
            continue
        if copy.extent.height > 1 or copy.extent.depth > 1 or not source:
            raise EdgememError("the recording copies a box from the host.")
        own = memory.pinned(nbytes)
        ctypes.memmove(own.ctypes.data, source, nbytes)
        to_device = api.cudaMemcpyKind.cudaMemcpyHostToDevice
        memory.call(api.cudaGraphMemcpyNodeSetParams1D, node, copy.dstPtr.ptr, own.ctypes.data, nbytes, to_device)
        kept.append(own)
    return kept


def _nodes(api: Any, graph: Any) -> list[Any]:
    """The nodes of a graph."""
    if not hasattr(api, "cudaGraphGetNodes"):
        raise EdgememError("cuda-bindings is missing, so nobody can look into the recording.")
    code, _, count = api.cudaGraphGetNodes(graph)
    if int(code) != 0 or not count:
        raise EdgememError("the recording is empty.")
    nodes: list[Any] = api.cudaGraphGetNodes(graph, count)[1]
    return nodes


def _on_device(memory: CudaMemory, address: int) -> bool:
    """Whether it is an address of device memory."""
    api = memory.api
    found = memory.call(api.cudaPointerGetAttributes, address)
    return bool(found.type == api.cudaMemoryType.cudaMemoryTypeDevice)
