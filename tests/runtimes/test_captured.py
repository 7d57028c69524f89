"""A recorded graph may be launched for ever: what it reads stays as it was when it was recorded."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from edgemem.errors import EdgememError
from edgemem.runtimes.cuda import CudaBlock, CudaMemory
from tests.runtimes.stand_in_cuda import StandIn


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    api = StandIn()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", api)
    return api


def table(api: StandIn, values: list[float]) -> tuple[int, Any]:
    """Page-locked memory of an engine, its address and an array of it."""
    _, address = api.cudaHostAlloc(4 * len(values), 0)
    array = np.frombuffer(api.pinned[address], np.float32)
    array[...] = values
    return address, array


def content(block: CudaBlock) -> list[float]:
    found = np.empty(block.nbytes // 4, np.float32)
    block.download(0, found)
    return found.tolist()


def test_a_table_of_the_engine_is_kept_as_it_was(api: StandIn) -> None:
    memory = CudaMemory()
    block, (address, array) = memory.allocate(8), table(api, [1, 2])
    graph = memory.capture(lambda: memory.copy(block.address, address, 8, "HostToDevice"), constants=True)
    array[...] = 9  # the engine uses it for something else
    graph.launch()
    assert content(block) == [1, 2]
    api.cudaFreeHost(address)
    graph.launch()
    assert content(block) == [1, 2]


def test_what_the_stream_itself_sends_is_read_anew_at_every_launch(api: StandIn) -> None:
    memory = CudaMemory()
    block = memory.allocate(8)
    own = block.host_buffer(0, 8)
    graph = memory.capture(lambda: block.send(0, own), constants=True)
    for values in ([1.0, 2.0], [3.0, 4.0]):
        own.view(np.float32)[...] = values
        graph.launch()
        assert content(block) == values


def test_copies_within_the_device_are_left_alone(api: StandIn) -> None:
    memory = CudaMemory()
    a, b = memory.allocate(8), memory.allocate(8)
    graph = memory.capture(lambda: b.copy_from(a, 8), constants=True)
    for values in ([1.0, 2.0], [3.0, 4.0]):
        a.upload(0, np.float32(values))
        graph.launch()
        assert content(b) == values


@pytest.mark.parametrize("kind", ["Host", "MemAlloc"])
def test_functions_of_the_host_and_new_memory_are_refused(api: StandIn, kind: str) -> None:
    memory = CudaMemory()
    with pytest.raises(EdgememError, match=f"cannot be repeated safely \\({kind}\\)"):
        memory.capture(lambda: api.enqueue(memory.stream, lambda: None, kind), constants=True)


def test_a_box_of_a_table_is_refused(api: StandIn) -> None:
    memory = CudaMemory()
    block, (address, _) = memory.allocate(16), table(api, [1, 2, 3, 4])
    kind = api.cudaMemcpyKind.cudaMemcpyHostToDevice
    with pytest.raises(EdgememError, match="a box from the host"):
        memory.capture(
            lambda: memory.call(api.cudaMemcpy2DAsync, block.address, 8, address, 8, 4, 2, kind, memory.stream),
            constants=True,
        )


def test_a_copy_to_the_host_is_refused(api: StandIn) -> None:
    memory = CudaMemory()
    block, (address, _) = memory.allocate(8), table(api, [1, 2])
    with pytest.raises(EdgememError, match="writes to host memory"):
        memory.capture(lambda: memory.copy(address, block.address, 8, "DeviceToHost"), constants=True)


def test_an_empty_recording_is_refused(api: StandIn) -> None:
    with pytest.raises(EdgememError, match="empty"):
        CudaMemory().capture(lambda: None, constants=True)
