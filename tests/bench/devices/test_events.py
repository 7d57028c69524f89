"""A step on a GPU is taken apart by events in its stream, over a stand-in whose device has a clock of its own."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.bench.devices import found
from edgemem.bench.devices.bandwidth import LARGEST_BYTES, CopyPass
from edgemem.bench.devices.events import StepTimer
from edgemem.bench.devices.found import cuda_memory, devices_of, is_integrated
from edgemem.bench.devices.nvml import NvmlReader
from edgemem.bench.sections.comparison import Comparison
from edgemem.bench.sections.gpu_time import GpuTime
from edgemem.bench.subject import Options, Plan
from edgemem.bench.suite import run
from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import EdgememError
from edgemem.runtimes import Stream
from edgemem.runtimes.cuda import CudaBlock, CudaMemory
from tests.bench.devices import recorded
from tests.bench.tiny import write_tiny
from tests.runtimes import tiny
from tests.runtimes.stand_in_cuda import StandIn
from tests.runtimes.trt.machine import machine

BYTES_PER_MS = 1000.0


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    module.copy_bytes_per_ms = BYTES_PER_MS
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    return module


@pytest.fixture
def memory(stand_in: StandIn) -> CudaMemory:
    return CudaMemory()


class Step:
    """A step as a runtime makes it: 2 ms of copies in, 5 ms of kernels, 3 ms of copies out, the waiting in it."""

    def __init__(self, stand_in: StandIn, memory: CudaMemory) -> None:
        self.stand_in, self.memory = stand_in, memory
        self.block = CudaBlock(memory, 8000)
        self.inputs, self.outputs = np.zeros(2000, np.uint8), np.zeros(3000, np.uint8)

    def kernels(self) -> None:
        self.stand_in.enqueue(self.memory.stream, lambda: self.later(5.0))

    def later(self, milliseconds: float) -> None:
        self.stand_in.device_ms += milliseconds

    def __call__(self) -> None:
        self.block.send(0, self.inputs)
        self.kernels()
        self.block.download(0, self.outputs)


class Clock:
    """The host's clock: every look at it takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def timed(memory: CudaMemory, step: Callable[[], object], times: int = 3) -> GpuTime:
    with StepTimer(memory, Clock()) as timer:
        for _ in range(times):
            timer.time(step)
    return GpuTime.of(timer.steps)


def test_copies_and_the_rest_are_told_apart(stand_in: StandIn, memory: CudaMemory) -> None:
    result = timed(memory, Step(stand_in, memory))
    assert result.steps == 3
    assert (result.gpu_ms, result.copies_in_ms, result.copies_out_ms) == pytest.approx((10.0, 2.0, 3.0))
    assert result.graph_ms is None


def test_waiting_is_not_the_hosts_work(stand_in: StandIn, memory: CudaMemory) -> None:
    result = timed(memory, Step(stand_in, memory))
    # The clock is looked at when the step begins, when it begins and ends to wait, and at its end.
    assert (result.enqueue_ms, result.wait_ms, result.host_ms) == pytest.approx((1.0, 1.0, 2.0))


def test_a_step_that_waits_twice_ends_with_the_second_wait(stand_in: StandIn, memory: CudaMemory) -> None:
    step = Step(stand_in, memory)

    def twice() -> None:
        step()
        step()

    result = timed(memory, twice)
    assert (result.gpu_ms, result.copies_in_ms, result.copies_out_ms) == pytest.approx((20.0, 4.0, 6.0))
    assert (result.enqueue_ms, result.wait_ms) == pytest.approx((1.0, 2.0)), "enqueueing ends where waiting begins"


def test_work_that_is_issued_after_the_wait_belongs_to_the_step(stand_in: StandIn, memory: CudaMemory) -> None:
    step = Step(stand_in, memory)

    def and_commit() -> None:
        step()
        step.block.copy_from(step.block, 4000, dst=4000)

    result = timed(memory, and_commit)
    assert result.gpu_ms == pytest.approx(14.0)
    assert result.copies_in_ms == pytest.approx(2.0), "a copy within the device is work, not a copy of the host's"


def test_a_captured_graph_is_timed_where_it_is_launched(stand_in: StandIn, memory: CudaMemory) -> None:
    step = Step(stand_in, memory)
    graph = memory.capture(step.kernels)

    def launch() -> None:
        step.block.send(0, step.inputs)
        graph.launch()
        step.block.download(0, step.outputs)

    result = timed(memory, launch)
    assert (result.gpu_ms, result.graph_ms) == pytest.approx((10.0, 5.0))


def test_no_event_gets_into_a_graph_that_is_captured_meanwhile(stand_in: StandIn, memory: CudaMemory) -> None:
    step = Step(stand_in, memory)
    source, target = CudaBlock(memory, 1000), CudaBlock(memory, 1000)

    kept = []

    def capture() -> None:
        kept.append(memory.capture(lambda: target.copy_from(source, 1000)))
        step()

    with StepTimer(memory) as timer:
        timer.time(capture)
    (recorded,) = stand_in.executables.values()
    assert len(recorded) == 1, "the copy alone"
    result = GpuTime.of(timer.steps)
    assert result.gpu_ms == pytest.approx(10.0)


def test_medians_are_of_the_steps(stand_in: StandIn, memory: CudaMemory) -> None:
    step = Step(stand_in, memory)
    took = iter([5.0, 100.0, 6.0])
    step.kernels = lambda: stand_in.enqueue(memory.stream, lambda: step.later(next(took)))  # type: ignore[method-assign]
    result = timed(memory, step)
    assert result.gpu_ms == pytest.approx(11.0)


def test_a_step_that_issues_nothing_gives_no_figure(memory: CudaMemory) -> None:
    with StepTimer(memory) as timer:
        timer.time(lambda: None)
    assert timer.steps == []


def test_the_timer_leaves_no_event_and_no_hook_behind(stand_in: StandIn, memory: CudaMemory) -> None:
    step = Step(stand_in, memory)
    timed(memory, step, times=200)
    assert stand_in.events == {}
    with stand_in.counted() as calls:
        step()
    assert "cudaEventRecord" not in calls


def test_events_are_used_again(stand_in: StandIn, memory: CudaMemory) -> None:
    step = Step(stand_in, memory)
    with StepTimer(memory) as timer:
        timer.time(step)
        after_one = len(stand_in.events)
        for _ in range(100):
            timer.time(step)
        assert len(stand_in.events) == after_one


def test_a_failing_step_takes_the_hook_off(stand_in: StandIn, memory: CudaMemory) -> None:
    def fail() -> None:
        raise KeyError("the model")

    with pytest.raises(KeyError), StepTimer(memory) as timer:
        timer.time(fail)
    assert stand_in.events == {}
    assert memory.observer is None


def test_a_copy_within_the_device_moves_every_byte_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn(limit=1 << 29)
    stand_in.copy_bytes_per_ms = float(1 << 26)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", stand_in)
    way = CopyPass(CudaMemory())
    assert way.nbytes == 1 << 26, "an eighth of what is free"
    way.step()
    copies = stand_in.device_ms  # of one block a millisecond
    assert copies >= 1
    assert way.traffic_bytes == 2 * way.nbytes * copies


def test_a_block_is_no_larger_than_need_be() -> None:
    class Memory:
        api = StandIn()

        def call(self, function: object) -> int:
            return 100 << 30

        def allocate(self, nbytes: int) -> int:
            return nbytes

    assert CopyPass(Memory()).nbytes == LARGEST_BYTES  # type: ignore[arg-type]


def test_a_full_device_says_so_instead_of_measuring_its_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn(limit=100 << 20))
    with pytest.raises(EdgememError, match="100 MiB of the device's memory are free, 512 MiB are needed"):
        CopyPass(CudaMemory())


@pytest.mark.parametrize("integrated", [True, False])
def test_cuda_says_whether_a_gpu_is_integrated(stand_in: StandIn, memory: CudaMemory, integrated: bool) -> None:
    stand_in.integrated = integrated
    assert is_integrated(memory) is integrated


@pytest.mark.parametrize(
    ("compatible", "integrated"), [("nvidia,p3767-0005\0nvidia,tegra234\0", True), ("raspberrypi,5-model-b\0", False)]
)
def test_without_cuda_calls_a_tegra_is_known_by_its_device_tree(
    tmp_path: Path, compatible: str, integrated: bool
) -> None:
    recorded.write(tmp_path, {"proc/device-tree/compatible": compatible})
    assert is_integrated(None, tmp_path) is integrated


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundle(tmp_path_factory.mktemp("gpu") / "tokens", tiny.TOKENS, tiny.tokens_model())


def sent_bytes(stream: Stream) -> int:
    """Bytes from the start of a step's data to the end of its positions, which go in one copy."""
    layout = stream._lane.arena.layout
    return layout.positions.end - layout.step_inputs["tokens"].offset


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_a_step_of_the_tensorrt_runtime_is_taken_apart(bundle: Bundle, cuda_graphs: bool) -> None:
    with machine() as here, here.open(bundle, cuda_graphs=cuda_graphs) as session:
        stream = session.stream()
        memory = cuda_memory(stream)
        assert memory is not None
        here.cuda.copy_bytes_per_ms = 1.0
        with StepTimer(memory) as timer:
            for token in (1, 2, 3):
                timer.time(lambda token=token: stream.step(token))
        result = GpuTime.of(timer.steps)
    # Nothing but copies takes time here, a millisecond a byte.
    copied_in, copied_out = sent_bytes(stream), 4 * math.prod(bundle.contract.output.shape)
    assert result.copies_out_ms == pytest.approx(copied_out)
    if cuda_graphs:
        assert result.graph_ms == pytest.approx(copied_in)
        assert result.copies_in_ms == 0.0, "it is in the graph"
    else:
        assert result.graph_ms is None
        assert result.copies_in_ms == pytest.approx(copied_in)
    assert result.gpu_ms > copied_in + copied_out, "the append to the rings is a step's work as well"


def test_the_devices_of_a_stream_on_a_gpu_are_its_own(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []

    class Nvml(NvmlReader):
        def __init__(self, bus_id: str | None) -> None:
            asked.append(bus_id)
            super().__init__(bus_id)

    monkeypatch.setattr(found, "NvmlReader", Nvml)
    with machine() as here, here.open(bundle) as session:
        stream = session.stream()
        assert devices_of(session, stream, tmp_path).gpu is not None
        here.cuda.integrated = True
        integrated = devices_of(session, stream, tmp_path)
    assert asked == ["0000:01:00.0"]
    assert integrated.is_integrated
    assert integrated.gpu is None, "its driver counts memory that is the system's"


def test_the_whole_benchmark_runs_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_tiny(tmp_path / "bundle")
    with machine(limit=(1 << 29) + (1 << 24)) as here:
        monkeypatch.setattr(edgemem, "open", lambda path, **_: here.open(open_bundle(path)))
        plan = replace(
            Plan.quick(), steps=20, warmup=2, rounds=2, turn=2, prefill=8, prefill_rounds=1, positions=(0, 1_000),
            gpu_steps=5,
        )  # fmt: skip
        result = run(bundle.path, Options(quick=True), plan)
    assert result.subject.device == "cuda"
    assert result[GpuTime].steps == 5
    floor = result[Comparison].floor
    assert floor is not None
    assert floor.method == "copy within the device"
    text = "\n".join(" ".join(row) for table in result.tables() for row in table.rows)
    assert "captured graphs" in text
