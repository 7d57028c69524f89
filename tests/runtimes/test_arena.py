"""One arena holds a stream; host memory and device memory move its bytes alike."""

from __future__ import annotations

import gc
import itertools
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemem.bundle import Bundle
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import EdgememError, RuntimeUnavailableError
from edgemem.runtimes.arena import Arena
from edgemem.runtimes.cuda import CudaMemory
from edgemem.runtimes.layout import Layout
from edgemem.runtimes.memory import HostMemory, Memory, Tensor
from edgemem.runtimes.ort.engine import OrtSession
from edgemem.runtimes.rings import write_ring
from tests.runtimes import stand_in_cuda, tiny
from tests.runtimes.stand_in_cuda import CudaError, StandIn


def real_cuda() -> CudaMemory:
    pytest.importorskip("cuda.bindings.runtime")
    try:
        return CudaMemory()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    return module


@pytest.fixture(params=["host", "stand-in", pytest.param("device", marks=pytest.mark.gpu)])
def memory(request: pytest.FixtureRequest) -> Memory:
    if request.param == "host":
        return HostMemory()
    if request.param == "device":
        return real_cuda()
    request.getfixturevalue("stand_in")
    return CudaMemory()


def contract_of(states: list[StateSpec], max_chunk: int) -> Contract:
    return Contract((InputSpec("tokens", (), "int64", 9),), (OutputSpec("logits", (5,)),), tuple(states), max_chunk)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    max_chunk = draw(st.integers(1, 5))
    # Widths of 64 floats fill whole alignment units, so that N·B·H rows collapse; the others do not.
    shapes = [(draw(st.integers(1, 3)), max_chunk + draw(st.integers(0, 4)), draw(st.sampled_from([1, 3, 64])))]
    shapes.append((1, shapes[0][1], 2))
    dtypes = st.sampled_from(["float32", "float16"])
    states = [
        StateSpec(f"{i}.window.k", draw(st.sampled_from(shapes)), draw(dtypes), "append")
        for i in range(draw(st.integers(1, 5)))
    ]
    states += [StateSpec(f"{i}.mean.s", (i + 1,), initial=0.25) for i in range(draw(st.integers(0, 2)))]
    return contract_of(states, max_chunk)


def put_entries(arena: Arena, contract: Contract, time: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Fill the outputs of a call as an engine would."""
    values = {}
    for state in contract:
        tensor = arena.past(state, 1 - arena.side)
        if state.update == "append":
            tensor = Tensor(arena.block, arena.layout.entries(time)[state.name])
        values[state.name] = rng.integers(-99, 99, tensor.shape).astype(tensor.dtype)
        tensor.write_rows(values[state.name])
    return values


@given(contract=contracts(), batch=st.integers(1, 3), uniform=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_commits_write_every_entry_into_its_slot(
    memory: Memory, contract: Contract, batch: int, uniform: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    arena = Arena(memory, contract, batch, contract.max_chunk)
    arena.reset()
    wanted = {state.name: arena.past(state, arena.side).read() for state in contract}
    common = data.draw(st.integers(0, 20))
    arena.positions[...] = [common if uniform else data.draw(st.integers(0, 20)) for _ in range(batch)]
    for _ in range(data.draw(st.integers(1, 4))):
        time = data.draw(st.integers(1, contract.max_chunk))
        new = put_entries(arena, contract, time, rng)
        arena.commit(time, int(arena.positions[0]) if uniform else None)
        for state in contract:
            if state.update == "append":
                write_ring(wanted[state.name], new[state.name], arena.positions)
            else:
                wanted[state.name] = new[state.name]
        arena.positions += time
        for state in contract:
            np.testing.assert_array_equal(arena.past(state, arena.side).read(), wanted[state.name], state.name)


@given(contract=contracts(), batch=st.integers(1, 4), alignment=st.sampled_from([64, 256]))
@settings(max_examples=40, deadline=None)
def test_no_two_tensors_overlap_and_all_are_aligned(contract: Contract, batch: int, alignment: int) -> None:
    layout = Layout(contract, batch, contract.max_chunk, alignment)
    places = [*layout.rings.values(), *layout.replaced[0].values(), *layout.replaced[1].values()]
    assert all(place.end <= layout.state_bytes for place in places)
    places += [*layout.step_inputs.values(), layout.positions, layout.step_indices, *layout.step_outputs.values()]
    places += [*layout.chunk_inputs.values(), layout.chunk_indices, *layout.entries(1).values()]
    for time in range(2, contract.max_chunk + 1):
        every = sorted([*places, *layout.entries(time).values()], key=lambda place: (place.offset, place.end))
        assert all(a.end <= b.offset for a, b in itertools.pairwise(every))
        assert all(place.offset % alignment == 0 for place in every)
        assert every[-1].end <= layout.nbytes


@pytest.mark.parametrize("batch", [1, 3])
def test_rings_of_one_shape_are_appended_by_one_copy(stand_in: StandIn, batch: int) -> None:
    states = [StateSpec(f"{i}.window.{t}", (8, 16, 64), update="append") for i in range(4) for t in "kv"]
    arena = Arena(CudaMemory(), contract_of(states, 8), batch, 8)
    arena.reset()
    with stand_in.counted() as calls:
        arena.commit(1, 3)
    assert calls == {"cudaMemcpy2DAsync": 1}
    with stand_in.counted() as calls:
        arena.commit(1, None if batch > 1 else 3)
    assert calls == ({"cudaMemcpy3DAsync": batch} if batch > 1 else {"cudaMemcpy2DAsync": 1})


def test_a_fork_a_reading_and_a_writing_of_the_whole_state_are_one_copy_each(stand_in: StandIn) -> None:
    contract, memory = tiny.TOKENS, CudaMemory()
    first, second = (Arena(memory, contract, 2, 4) for _ in range(2))
    first.reset()
    put_entries(first, contract, 1, np.random.default_rng(0))
    first.commit(1, 0)
    with stand_in.counted() as calls:
        second.copy_state(first)
    assert calls == {"cudaMemcpyAsync DeviceToDevice": 1}
    with stand_in.counted() as calls:
        values = second.read_state()
    assert calls == {"cudaMemcpyAsync DeviceToHost": 1, "cudaStreamSynchronize": 1}
    with stand_in.counted() as calls:
        second.write_state(values)
    assert calls == {"cudaMemcpyAsync HostToDevice": 1, "cudaStreamSynchronize": 1}
    for state in contract:
        np.testing.assert_array_equal(second.past(state, second.side).read(), first.past(state, first.side).read())


def test_a_stream_in_device_memory_steps_feeds_forks_and_resets_like_one_in_host_memory(
    tokens_bundle: Bundle, stand_in: StandIn
) -> None:
    """The engine runs on the CPU over the stand-in's memory: staging, uploads and downloads are those of a device."""
    stand_in.at_once = True  # this engine knows of no stream
    rng = np.random.default_rng(0)
    with (
        OrtSession(tokens_bundle, threads=1, device="cpu") as host,
        OrtSession(tokens_bundle, threads=1, device="cpu") as device,
    ):
        device.engine.memory = CudaMemory()
        a, b = host.stream(3), device.stream(3)
        for turn in range(6):
            chunk = rng.integers(0, tiny.VOCAB, (3, 9))
            for column in chunk.T:
                np.testing.assert_array_equal(a.step(column), b.step(column))
            np.testing.assert_array_equal(a.feed(chunk, "all"), b.feed(chunk, "all"))
            np.testing.assert_array_equal(a.feed(chunk[:, : turn + 2]), b.feed(chunk[:, : turn + 2]))
            assert a.snapshot() == b.snapshot()
            a.reset([turn % 3])
            b.reset([turn % 3])
            a, b = (a.fork(), b.fork()) if turn % 2 else (a.fork([2, 0, 1]), b.fork([2, 0, 1]))
        b.restore(a.snapshot())
        assert a.snapshot() == b.snapshot()
        del b
    del device
    gc.collect()
    assert not stand_in.live
    assert not stand_in.pinned


def test_an_output_outlives_its_stream(tokens_bundle: Bundle, stand_in: StandIn) -> None:
    """It is a view of page-locked memory, which must not be freed under it."""
    stand_in.at_once = True
    with OrtSession(tokens_bundle, threads=1, device="cpu") as session:
        session.engine.memory = CudaMemory()
        output = session.stream().step(3)
        kept = output.copy()
        del session
    gc.collect()
    assert len(stand_in.pinned) == 1
    np.testing.assert_array_equal(output, kept)
    del output
    gc.collect()
    assert not stand_in.pinned


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (StandIn(devices=0), "CUDA device 0 cannot be used: the driver reports no devices"),
        (
            StandIn(status=CudaError.cudaErrorInsufficientDriver, driver=0),
            r"no NVIDIA driver is loaded \(cudaErrorInsufficientDriver \(35\)\)",
        ),
        (
            StandIn(status=CudaError.cudaErrorInsufficientDriver, driver=12020, runtime=13000),
            r"(?s)driver supports CUDA 12\.2, .*cudaErrorInsufficientDriver \(35\).*cuda-bindings<13",
        ),
        (None, "cuda.bindings.runtime cannot be imported"),
    ],
)
def test_a_machine_without_cuda_is_told_so(
    monkeypatch: pytest.MonkeyPatch, module: StandIn | None, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", module)
    with pytest.raises(RuntimeUnavailableError, match=message):
        CudaMemory()


def test_a_full_device_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn(limit=1000))
    with pytest.raises(
        EdgememError,
        match=r"cudaMalloc failed: cudaErrorMemoryAllocation \(2\): 1,001 bytes were asked for; "
        r"of 1,000 bytes 1,000 are free",
    ):
        CudaMemory().allocate(1001)


def test_a_copy_that_leaves_its_block_is_refused(memory: Memory) -> None:
    from edgemem.runtimes.memory import Box

    block = memory.allocate(256)
    for call in (
        lambda: block.copier(0, 128, Box(64, 2, 1, 64, 64, 128, 128), 64, 4),
        lambda: block.copy_box(0, 200, Box(64, 1, 1, 64, 64, 64, 64)),
        lambda: block.upload(200, np.zeros(100, np.uint8)),
    ):
        with pytest.raises(ValueError, match=r"bytes|buffer|broadcast"):
            call()


def test_the_stand_in_has_what_cuda_bindings_has(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cuda.bindings.runtime")
    api = pytest.importorskip("cuda.bindings.runtime")
    names = [name for name in dir(StandIn) if name.startswith("cuda")] + ["make_cudaPitchedPtr", "make_cudaPos"]
    for name in [*names, "make_cudaExtent"]:
        assert hasattr(api, name), name
    for name in ("cudaStreamDefault", "cudaStreamNonBlocking", "cudaHostAllocDefault"):
        assert getattr(api, name) == getattr(StandIn, name), name
    for ours, theirs in (
        (stand_in_cuda.MemcpyKind, api.cudaMemcpyKind),
        (stand_in_cuda.CaptureMode, api.cudaStreamCaptureMode),
        (CudaError, api.cudaError_t),
    ):
        assert {m.name: int(m) for m in ours}.items() <= {m.name: int(m) for m in theirs}.items()
    parameters = api.cudaMemcpy3DParms()
    for name in ("srcPtr", "dstPtr", "srcPos", "dstPos", "extent", "kind"):
        assert hasattr(parameters, name)
