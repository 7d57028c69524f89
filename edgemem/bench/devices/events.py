"""A step taken apart on a GPU: time in the stream by CUDA events, in copies, and on the host.

The runtimes issue all their own CUDA calls through :meth:`CudaMemory.call`, in one stream. While a timer is attached,
it sees each call and puts events around it. What an engine enqueues itself lies between two calls, and so between two
events. An event is recorded in the stream and read after the stream has been waited for, so nothing waits that would
not have waited. Nothing is recorded while a graph is being captured: it would become a part of the graph.

This has not run on a GPU: it is tested over a stand-in for the CUDA calls that has a clock of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from edgemem.bench.result import GpuTime
from edgemem.runtimes.cuda import CudaMemory

_COPIES = {
    "cudaMemcpyAsync": 3,
    "cudaMemcpy2DAsync": 6,
    "cudaMemcpy3DAsync": None,  # within the device only
}
"""Where a copy's kind stands among its arguments."""

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_WORK = (*_COPIES, "cudaGraphLaunch", "cudaMemsetAsync", "cudaMemset2DAsync")
_FEW_EVENTS = 64


class StepTimer:
    """Attached to the memory of a session inside its block; :meth:`time` is called for each step.

    Args:
        memory: The session's.
        clock: Nanoseconds of the host.
    """

    def __init__(self, memory: CudaMemory, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self._memory = memory
        self._clock = clock
        self._call = memory.call
        self._spare: list[Any] = []
        self._used: list[Any] = []
        self._spans: list[tuple[str, Any, Any]] = []
        self._first: Any = None
        self._last: Any = None
        self._pending = False
        self._capturing = False
        self._wait_ns = 0
        self._enqueued_ns: int | None = None
        self._rows: list[tuple[float, float, float, float, float, float, float]] = []
        self._has_graph = False

    def __enter__(self) -> StepTimer:
        self._spare = [self._new() for _ in range(_FEW_EVENTS)]
        self._memory.call = self._seen  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._memory.call  # the class's own again
        self._memory.synchronize()
        self._return_events()
        for event in self._spare:
            self._call(self._memory.api.cudaEventDestroy, event)
        self._spare.clear()

    def time(self, step: Callable[[], object]) -> None:
        """Take one step.

        Args:
            step: The step; it waits for the stream itself.
        """
        self._return_events()
        self._pending, self._wait_ns, self._enqueued_ns, self._capturing = False, 0, None, False
        start = self._clock()
        step()
        end = self._clock()
        if self._first is None:
            return
        if self._pending:  # the step waits by other means: what it issued last is behind the last event
            self._last = self._record()
            self._call(self._memory.api.cudaStreamSynchronize, self._memory.stream)
        took = {"in": 0.0, "out": 0.0, "graph": 0.0}
        for what, before, after in self._spans:
            took[what] += self._between(before, after)
        enqueue_ns = (end if self._enqueued_ns is None else self._enqueued_ns) - start
        self._rows.append(
            (
                self._between(self._first, self._last),
                took["in"],
                took["out"],
                took["graph"],
                enqueue_ns / 1e6,
                self._wait_ns / 1e6,
                (end - start - self._wait_ns) / 1e6,
            )
        )

    def result(self) -> GpuTime | None:
        """Medians of the steps; ``None``: no step issued anything that could be seen."""
        if not self._rows:
            return None
        gpu, copies_in, copies_out, graph, enqueue, wait, host = (float(v) for v in np.median(self._rows, axis=0))
        return GpuTime(
            len(self._rows), gpu, copies_in, copies_out, graph if self._has_graph else None, enqueue, wait, host
        )

    def _seen(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        name = getattr(function, "__name__", "")
        if name == "cudaStreamBeginCapture":
            self._capturing = True
        elif name == "cudaStreamEndCapture":
            self._capturing = False
        if self._capturing or name not in (*_WORK, *_WAITS):
            return self._call(function, *arguments)
        if name in _WAITS:
            return self._wait(function, *arguments)
        what = self._span(name, arguments)
        before = self._record() if what or self._first is None else None
        if self._first is None:
            self._first = before
        value = self._call(function, *arguments)
        self._pending = True
        if what:
            after = self._record()
            self._spans.append((what, before, after))
        return value

    def _wait(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
        if self._first is not None:
            self._last = self._record()
        began = self._clock()
        if self._enqueued_ns is None:
            self._enqueued_ns = began
        value = self._call(function, *arguments)
        self._wait_ns += self._clock() - began
        self._pending = False
        return value

    def _span(self, name: str, arguments: tuple[Any, ...]) -> str:
        if name == "cudaGraphLaunch":
            self._has_graph = True
            return "graph"
        index = _COPIES.get(name)
        if index is None:
            return ""
        kinds = self._memory.api.cudaMemcpyKind
        return {kinds.cudaMemcpyHostToDevice: "in", kinds.cudaMemcpyDeviceToHost: "out"}.get(arguments[index], "")

    def _new(self) -> Any:
        return self._call(self._memory.api.cudaEventCreate)

    def _record(self) -> Any:
        event = self._spare.pop() if self._spare else self._new()
        self._used.append(event)
        self._call(self._memory.api.cudaEventRecord, event, self._memory.stream)
        return event

    def _between(self, before: Any, after: Any) -> float:
        return float(self._call(self._memory.api.cudaEventElapsedTime, before, after))

    def _return_events(self) -> None:
        self._spare += self._used
        self._used.clear()
        self._spans.clear()
        self._first = self._last = None
