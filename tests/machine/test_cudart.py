"""Where cuda-bindings is missing, or finds no device, the machine's own libcudart is called."""

import sys

import numpy as np
import pytest

from edgemem.cli.doctor_command import machine_facts
from edgemem.machine import cudart
from edgemem.machine.cuda import describe_code, probe_cuda
from edgemem.machine.cudart import Cudart, find_cudart
from edgemem.runtimes.cuda import CudaMemory
from edgemem.runtimes.memory import Box
from tests.machine.cuda_api import Code, cuda
from tests.machine.library import stand_in_library

NO_BINDINGS = {"missing": None, "a build that finds no device": cuda(Code.cudaErrorNoDevice, 0)}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return stand_in_library(tmp_path_factory)


@pytest.fixture(params=NO_BINDINGS.values(), ids=NO_BINDINGS)
def board(request, library, monkeypatch):
    """A machine with libcudart, without cuda-bindings that works."""
    monkeypatch.setattr(cudart, "LIBRARIES", ("libcudart.so.99", library))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", request.param)
    return library


def test_the_device_is_described_through_the_library(board):
    found = probe_cuda()
    assert (found.problem, found.api) == ("", board)
    assert (found.driver, found.device, found.compute_capability) == ("12.6", "Board", "8.7")
    assert (found.free_bytes, found.total_bytes) == (3 << 30, 4 << 30)


def test_memory_is_moved_through_the_library(board):
    memory = CudaMemory()
    assert isinstance(memory.api, Cudart)
    block, given = memory.allocate(4096), np.arange(4096, dtype=np.uint8)
    block.upload(0, given)
    block.copy_box(
        2048, 0, Box(8, 4, 3, dst_pitch=16, src_pitch=32, dst_slice=64, src_slice=128)
    )  # twelve rows of eight bytes, in slices
    expected = given.copy()
    for slice_ in range(3):
        for row in range(4):
            to, of = 2048 + slice_ * 64 + row * 16, slice_ * 128 + row * 32
            expected[to : to + 8] = given[of : of + 8]
    got = np.zeros_like(given)
    block.download(0, got)
    np.testing.assert_array_equal(got, expected)


def test_recorded_work_is_done_at_every_launch(board):
    memory = CudaMemory(blocking=False)
    block, got = memory.allocate(512), np.zeros(256, np.uint8)
    graph = memory.capture(lambda: block.copy_from(block, 256, dst=256))
    for value in (3, 4):
        block.upload(0, np.full(256, value, np.uint8))
        graph.launch()
        block.download(256, got)
        assert set(got) == {value}


def test_an_error_has_its_number_and_its_name(library):
    code, _ = Cudart(library).cudaMalloc(2 << 30)
    assert describe_code(code) == "cudaErrorMemoryAllocation (2)"
    assert code == Cudart.cudaError_t.cudaErrorMemoryAllocation


def test_what_the_benchmark_reads_is_there(library):
    api = Cudart(library)
    assert api.cudaDeviceGetPCIBusId(32, 0) == (0, b"0000:01:00.0")
    assert api.cudaDeviceGetAttribute(api.cudaDeviceAttr.cudaDevAttrIntegrated, 0) == (0, 1)
    (_, event), (_, stream) = api.cudaEventCreate(), api.cudaStreamCreateWithFlags(0)
    assert api.cudaEventRecord(event, stream) == (0,)
    assert api.cudaEventElapsedTime(event, event) == (0, 1.5)


def test_without_a_device_the_problem_of_cuda_bindings_is_told(board, monkeypatch):
    monkeypatch.setenv("STAND_IN_DEVICES", "0")
    missing = sys.modules["cuda.bindings.runtime"] is None
    assert ("cannot be imported" if missing else "cudaErrorNoDevice (100)") in probe_cuda().problem


def test_the_calls_are_those_of_a_real_library():
    """Without a driver, the library that NVIDIA builds answers with an error code and its name."""
    found = find_cudart()
    if found is None:
        pytest.skip("there is no libcudart")
    assert found.cudaRuntimeGetVersion()[1] >= 12000
    code, count = found.cudaGetDeviceCount()
    assert (int(code) == 0 and count > 0) or code.name.startswith("cudaError")


def test_the_names_and_numbers_are_those_of_cuda_bindings():
    api = pytest.importorskip("cuda.bindings.runtime")
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr", "cudaError_t"):
        for ours in getattr(Cudart, kind):
            assert getattr(getattr(api, kind), ours.name) == ours
    for name in (*cudart._CALLS, "cudaMemcpy3DAsync", "cudaDeviceGetPCIBusId", "cudaGetDeviceProperties"):
        assert hasattr(api, name), name


def test_doctor_says_through_what_cuda_is_called(board):
    assert machine_facts()["cuda"] == f"12.6, Board, compute capability 8.7, by {board}"
