"""Divides a step on a GPU into work, copies and host time, with CUDA events.

The runtimes make all their CUDA calls through :meth:`CudaMemory.call`, in one stream. During a timed step the timer
observes these calls and records events before and after them. What an engine enqueues by itself lies between two calls,
and so between two events. Events are read after the stream has been waited for, so the timer adds no waits. It records
nothing while a graph is captured, since the event would become part of the graph.

It ran on an H200, and is tested with a stand-in for the CUDA calls that has its own clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple

from edgemem.runtimes.cuda import CudaMemory

_COPIES = {
    "cudaMemcpyAsync": 3,
    "cudaMemcpy2DAsync": 6,
    "cudaMemcpy3DAsync": None,  # within the device only
}
"""Index of a copy's kind in its arguments."""

_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")
_WORK = (*_COPIES, "cudaGraphLaunch", "cudaMemsetAsync", "cudaMemset2DAsync")
_FEW_EVENTS = 64


class StepTimes(NamedTuple):
    """One step; see :class:`edgemem.bench.sections.gpu_time.GpuTime`."""

    gpu_ms: float
    copies_in_ms: float
    copies_out_ms: float
    graph_ms: float | None
    enqueue_ms: float
    wait_ms: float
    host_ms: float


class StepTimer:
    """Times steps with :meth:`time`, inside its block.

    Args:
        memory: The session's.
        clock: Nanoseconds of the host.

    Attributes:
        steps: The steps that were timed and issued work.
    """

    def __init__(self, memory: CudaMemory, clock: Callable[[], int] = time.perf_counter_ns) -> None:
        self.steps: list[StepTimes] = []
        self._memory = memory
        self._clock = clock
        self._spare: list[Any] = []
        self._used: list[Any] = []
        self._spans: list[tuple[str, Any, Any]] = []
        self._first: Any = None
        self._last: Any = None
        self._before: Any = None
        self._pending = False
        self._capturing = False
        self._wait_ns = self._wait_began_ns = 0
        self._enqueued_ns: int | None = None

    def __enter__(self) -> StepTimer:
        self._spare = [self._new() for _ in range(_FEW_EVENTS)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._memory.synchronize()
        self._return_events()
        for event in self._spare:
            self._memory.call(self._memory.api.cudaEventDestroy, event)
        self._spare.clear()

    def time(self, step: Callable[[], object]) -> None:
        """Take one step.

        Args:
            step: The step; it waits for the stream itself.
        """
        self._return_events()
        self._pending, self._wait_ns, self._enqueued_ns, self._capturing = False, 0, None, False
        self._memory.observer = self
        try:
            start = self._clock()
            step()
            end = self._clock()
        finally:
            self._memory.observer = None
        if self._first is None:
            return
        if self._pending:  # the step waits by other means: its last work is after the last event
            self._last = self._record()
            self._memory.synchronize()
        took: dict[str, float] = {"in": 0.0, "out": 0.0}
        for what, before, after in self._spans:
            took[what] = took.get(what, 0.0) + self._between(before, after)
        self.steps.append(
            StepTimes(
                gpu_ms=self._between(self._first, self._last),
                copies_in_ms=took["in"],
                copies_out_ms=took["out"],
                graph_ms=took.get("graph"),
                enqueue_ms=((end if self._enqueued_ns is None else self._enqueued_ns) - start) / 1e6,
                wait_ms=self._wait_ns / 1e6,
                host_ms=(end - start - self._wait_ns) / 1e6,
            )
        )

    def before(self, name: str, arguments: tuple[Any, ...]) -> None:
        """See :class:`~edgemem.runtimes.cuda.CallObserver`."""
        if name in ("cudaStreamBeginCapture", "cudaStreamEndCapture"):
            self._capturing = name == "cudaStreamBeginCapture"
        if self._capturing:
            return
        if name in _WAITS:
            if self._first is not None:
                self._last = self._record()
            self._wait_began_ns = self._clock()
            if self._enqueued_ns is None:
                self._enqueued_ns = self._wait_began_ns
        elif name in _WORK and (self._first is None or self._kind(name, arguments)):
            self._before = self._record()
            self._first = self._first or self._before

    def after(self, name: str, arguments: tuple[Any, ...]) -> None:
        """See :class:`~edgemem.runtimes.cuda.CallObserver`."""
        if self._capturing:
            return
        if name in _WAITS:
            self._wait_ns += self._clock() - self._wait_began_ns
            self._pending = False
        elif name in _WORK:
            self._pending = True
            if kind := self._kind(name, arguments):
                self._spans.append((kind, self._before, self._record()))

    def _kind(self, name: str, arguments: tuple[Any, ...]) -> str:
        """``"in"``, ``"out"``, ``"graph"``, or ``""`` for other work."""
        if name == "cudaGraphLaunch":
            return "graph"
        index = _COPIES.get(name)
        if index is None:
            return ""
        kinds = self._memory.api.cudaMemcpyKind
        return {kinds.cudaMemcpyHostToDevice: "in", kinds.cudaMemcpyDeviceToHost: "out"}.get(arguments[index], "")

    def _new(self) -> Any:
        return self._memory.call(self._memory.api.cudaEventCreate)

    def _record(self) -> Any:
        event = self._spare.pop() if self._spare else self._new()
        self._used.append(event)
        self._memory.call(self._memory.api.cudaEventRecord, event, self._memory.stream)
        return event

    def _between(self, before: Any, after: Any) -> float:
        return float(self._memory.call(self._memory.api.cudaEventElapsedTime, before, after))

    def _return_events(self) -> None:
        self._spare += self._used
        self._used.clear()
        self._spans.clear()
        self._first = self._last = None
