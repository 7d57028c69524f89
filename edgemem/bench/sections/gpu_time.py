"""How a step on a GPU divides into work, copies and host time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgemem.bench.devices.events import StepTimer, StepTimes
from edgemem.bench.devices.found import cuda_memory
from edgemem.bench.result import BenchResult, NotMeasured, Section, Stage
from edgemem.bench.subject import Run
from edgemem.bench.table import Table, rows_of, shown
from edgemem.bench.words import count, ms


@dataclass(frozen=True)
class GpuTime(
    Section, key="gpu_time", title="GPU and host time of a step", place=70, stage=Stage.SAME_LOOP, gives_reason=True
):
    """Medians over separate steps, since the events take time too.

    Attributes:
        steps: Number of steps.
        gpu_ms: From the first work of a step in the stream to its last, by events; it includes the gaps.
        copies_in_ms: Of that, copies from the host.
        copies_out_ms: Of that, copies to the host.
        graph_ms: Of that, captured graphs, including their copies; ``None``: no graph was launched.
        enqueue_ms: On the host, until it starts to wait.
        wait_ms: On the host, waiting.
        host_ms: On the host, everything but waiting.
    """

    steps: int
    gpu_ms: float = shown("GPU, first work to last", ms, "by events, including the gaps")
    copies_in_ms: float = shown("of that, copies in", ms)
    copies_out_ms: float = shown("of that, copies out", ms)
    graph_ms: float | None = shown("of that, captured graphs", ms, "including their copies")
    enqueue_ms: float = shown("enqueueing", ms, "on the host, until it starts to wait")
    wait_ms: float = shown("waiting", ms, "on the host")
    host_ms: float = shown("host", ms, "everything but waiting")

    @classmethod
    def measure(cls, run: Run) -> GpuTime | NotMeasured | None:
        if run.session.device != "cuda":
            return None
        memory = cuda_memory(run.loop.stream)
        if memory is None:
            return NotMeasured(f"the runtime {run.session.runtime!r} uses its own CUDA stream")
        run.progress("GPU time", 0, 1)
        with StepTimer(memory) as timer:
            for _ in range(run.plan.gpu_steps):
                timer.time(run.loop.step)
                run.loop.choose()
        run.loop.check()
        run.progress("GPU time", 1, 1)
        if not timer.steps:
            return NotMeasured(f"the runtime {run.session.runtime!r} made no CUDA calls that the benchmark can see")
        return cls.of(timer.steps)

    @classmethod
    def of(cls, steps: Sequence[StepTimes]) -> GpuTime:
        """The medians of steps, at least one."""
        gpu, copies_in, copies_out, graph, enqueue, wait, host = (
            float(np.median([value or 0.0 for value in column])) for column in zip(*steps, strict=True)
        )
        has_graph = any(step.graph_ms is not None for step in steps)
        return cls(len(steps), gpu, copies_in, copies_out, graph if has_graph else None, enqueue, wait, host)

    def tables(self, result: BenchResult) -> list[Table]:
        note = f"Medians of {count(self.steps)} separate steps: recording events makes them slower than those above."
        return [Table(self.key, self.title, ("what", "median", ""), rows_of(self), ("median",), [note])]

    def method(self, result: BenchResult) -> dict[str, str]:
        return {
            "GPU time": "Events are recorded in the stream before the first work of a step, after its last, and around "
            "its copies and captured graphs."
        }
