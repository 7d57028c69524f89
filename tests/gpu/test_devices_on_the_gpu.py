"""What the benchmark reads of a GPU: time by events, the speed of its memory, NVML."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemem.bench.devices.bandwidth import CopyPass
from edgemem.bench.devices.events import StepTimer
from edgemem.bench.devices.found import cuda_memory, devices_of
from edgemem.bench.sections.gpu_time import GpuTime
from edgemem.bundle import Bundle
from edgemem.errors import EdgememError
from edgemem.runtimes.cuda import CudaMemory
from tests.gpu.conftest import STAND_IN, Gpu

pytest.importorskip("onnx", reason="the tiny models are made with onnx")
from tests.runtimes import tiny

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundle(tmp_path_factory.mktemp("gpu") / "tokens", tiny.TOKENS, tiny.tokens_model())


def test_what_a_step_takes_on_the_gpu_fits_into_what_it_takes_on_the_host(any_gpu: Gpu, bundle: Bundle) -> None:
    with any_gpu.open(bundle) as session:
        stream = session.stream()
        memory = cuda_memory(stream)
        assert memory is not None
        for token in range(20):
            stream.step(token % tiny.VOCAB)
        whole = []
        with StepTimer(memory) as timer:
            for token in range(200):
                began = time.perf_counter()
                timer.time(lambda token=token: stream.step(token % tiny.VOCAB))
                whole.append((time.perf_counter() - began) * 1e3)
        result = GpuTime.of(timer.steps)
    assert result.steps == 200
    assert result.copies_in_ms + result.copies_out_ms <= result.gpu_ms + 0.01
    assert result.gpu_ms <= 1.1 * float(np.median(whole))
    assert result.enqueue_ms + result.wait_ms <= float(np.median(whole)) * 1.1
    if not STAND_IN:  # whose clock stands still
        assert result.gpu_ms > 0


def test_the_speed_of_the_gpus_memory_is_a_gpus(gpu: Gpu, record_property: Any) -> None:
    try:
        way = CopyPass(CudaMemory())
    except EdgememError as error:
        pytest.skip(error.message)
    took = []
    for _ in range(8):
        began = time.perf_counter()
        way.step()
        took.append(time.perf_counter() - began)
    gigabytes_per_second = way.traffic_bytes / float(np.median(took[2:])) / 1e9
    record_property("copy_gigabytes_per_second", gigabytes_per_second)
    if not STAND_IN:
        assert 10 < gigabytes_per_second < 20_000


def test_nvml_tells_of_the_gpu_that_cuda_uses(gpu: Gpu, bundle: Bundle, tmp_path: Path) -> None:
    if STAND_IN:
        pytest.skip("nothing stands in for NVML here")
    with gpu.open(bundle) as session:
        devices = devices_of(session, session.stream(), tmp_path)
        if devices.gpu is None:
            pytest.skip("the GPU is integrated: NVML is not asked")
        state = devices.state()
        held = devices.gpu.process_bytes()
    assert state.clocks_mhz, devices.problems
    assert 0 < state.temperatures_c[0].value < 120
    assert held is None or held > 1 << 20
