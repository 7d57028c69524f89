"""The TensorRT runtime, run for real: what stands in for the device and the engine computes, and is strict."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import EdgememError, EngineError, InputError, NonFiniteError, RuntimeUnavailableError
from edgemem.runtimes import Session, registry
from edgemem.runtimes.trt.session import RtxSession, TrtSession
from tests.runtimes import tiny
from tests.runtimes.stand_in_cuda import CudaError
from tests.runtimes.trt.machine import Machine, machine

TOLERANCE = 2e-5  # float32 sums of a dozen values of size 10
tokens = st.integers(0, tiny.VOCAB - 1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundle(tmp_path_factory.mktemp("trt") / "tokens", tiny.TOKENS, tiny.tokens_model())


@pytest.fixture
def device() -> Iterator[Machine]:
    with machine() as here:
        yield here


@pytest.fixture
def session(device: Machine, bundle: Bundle) -> Iterator[TrtSession]:
    with device.open(bundle) as session:
        yield session


def close_to_formula(values: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(values, wanted, atol=TOLERANCE, rtol=1e-5)


# Numbers.


@pytest.fixture(scope="module", params=[(k, r) for k in tiny.KINDS for r in ("tensorrt", "tensorrt-rtx")], ids=str)
def any_session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    kind, runtime = request.param
    folder = tmp_path_factory.mktemp("trt") / "bundle"
    bundle = tiny.save_bundle(folder, tiny.TOKENS, tiny.tokens_model(), kind.graphs)
    with machine(runtime) as here, here.open(bundle) as session:
        yield session


@given(
    pasts=st.lists(st.lists(tokens, max_size=15), min_size=1, max_size=4),
    turns=st.lists(st.tuples(st.integers(1, 9), st.sampled_from(["step", "all", "last", "none"])), min_size=1),
    data=st.data(),
)
@settings(max_examples=12, deadline=None)
def test_every_row_goes_on_from_its_own_position_by_steps_and_chunks_of_any_length(
    any_session: Session, pasts: list[list[int]], turns: list[tuple[int, str]], data: st.DataObject
) -> None:
    batch = len(pasts)
    histories = [list(past) for past in pasts]
    stream = any_session.stream(batch)
    stream.load_state(tiny.stacked([tiny.tokens_state(past) for past in pasts]), [len(past) for past in pasts])
    for length, how in turns[:5]:
        x = np.array([data.draw(st.lists(tokens, min_size=length, max_size=length)) for _ in range(batch)])
        starts = [len(history) for history in histories]
        for history, row in zip(histories, x.tolist(), strict=True):
            history += row
        wanted = np.stack(
            [tiny.tokens_outputs(history)[start:] for history, start in zip(histories, starts, strict=True)]
        )
        if how == "step":
            close_to_formula(np.stack([stream.step(column).copy() for column in x.T], axis=1), wanted)
        else:
            fed = stream.feed(x, how)
            if fed is not None:
                close_to_formula(fed, wanted if how == "all" else wanted[:, -1])
    for name, value in tiny.stacked([tiny.tokens_state(history) for history in histories]).items():
        np.testing.assert_allclose(stream.state()[name], value, rtol=1e-6, atol=1e-6, err_msg=name)
    assert stream.positions.tolist() == [len(history) for history in histories]


def test_a_fork_and_its_origin_go_their_own_ways(any_session: Session) -> None:
    stream, history = any_session.stream(2), [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 9, 8, 7, 6]]
    stream.feed(history)
    copy, swapped = stream.fork(), stream.fork([1, 0, 1])
    for left, right in zip((1, 2, 3, 4, 5), (6, 7, 8, 9, 10), strict=True):
        a, b, c = stream.step([left, left]).copy(), copy.step([right] * 2).copy(), swapped.step([left, right, 0]).copy()
    one, two = history
    close_to_formula(a[1], tiny.tokens_outputs([*two, 1, 2, 3, 4, 5])[-1])
    close_to_formula(b[0], tiny.tokens_outputs([*one, 6, 7, 8, 9, 10])[-1])
    close_to_formula(c[0], tiny.tokens_outputs([*two, 1, 2, 3, 4, 5])[-1])
    close_to_formula(c[1], tiny.tokens_outputs([*one, 6, 7, 8, 9, 10])[-1])


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_the_step_after_a_snapshot_is_bit_equal_in_this_stream_another_one_and_another_runtime(
    any_session: Session, steps: int
) -> None:
    stream = any_session.stream(2)
    for i in range(steps):
        stream.step([i, i + 1])
    stream.reset(rows=[1])
    taken = stream.snapshot("note")
    other = any_session.stream(2)
    other.feed(np.ones((2, 6), np.int64))
    assert other.restore(taken) == "note"
    assert other.snapshot("note") == taken
    with edgemem.open(any_session.bundle.path, "onnxruntime", threads=1, device="cpu") as cpu:
        third = cpu.stream(2)
        third.restore(taken)
        assert third.snapshot("note") == taken
        wanted = third.step([3, 4])
        np.testing.assert_array_equal(stream.step([3, 4]), wanted)
        np.testing.assert_array_equal(other.step([3, 4]), wanted)
        assert third.snapshot() == stream.snapshot() == other.snapshot()


@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_a_thousand_steps_with_graphs_are_bit_equal_to_a_thousand_without(bundle: Bundle, runtime: str) -> None:
    with machine(runtime) as here, here.open(bundle) as graphs, here.open(bundle, cuda_graphs=False) as plain:
        a, b = graphs.stream(), plain.stream()
        for i in range(1_000):
            np.testing.assert_array_equal(a.step((7 * i + 3) % tiny.VOCAB), b.step((7 * i + 3) % tiny.VOCAB))
        assert a.snapshot() == b.snapshot()
        assert graphs.engine.cuda_graphs
        assert not plain.engine.cuda_graphs


def test_of_outputs_that_the_graph_gives_anyway_the_last_alone_is_sent(device: Machine, tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "b", tiny.FEATURES, tiny.features_model())
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    with device.open(bundle) as session:
        stream = session.stream(3)
        device.cuda.moved.clear()
        last = stream.feed(x)
        assert last is not None
        assert device.cuda.moved["DeviceToHost"] == last.nbytes
        np.testing.assert_array_equal(last, session.stream(3).feed(x, "all")[:, -1])  # type: ignore[index]


def test_features_without_output_indices_and_a_position_of_the_models_own(device: Machine, tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "b", tiny.FEATURES, tiny.features_model())
    x = np.random.default_rng(0).normal(size=(2, 13, 2)).astype(np.float32)
    wanted = (1 / x.astype(np.float64)).cumsum(1) / np.arange(1, 14)[:, np.newaxis]
    with device.open(bundle) as session:
        stream = session.stream(2)
        np.testing.assert_allclose(stream.feed(x[:, :7], "all"), wanted[:, :7], rtol=2e-5)
        np.testing.assert_allclose(stream.feed(x[:, 7:12]), wanted[:, 11], rtol=2e-5)
        np.testing.assert_allclose(stream.step(x[:, 12]), wanted[:, 12], rtol=2e-5)
        assert stream.state()["position"].tolist() == stream.positions.tolist() == [13, 13]


@pytest.mark.parametrize("guard", [False, True])
def test_bfloat16_in_out_and_in_the_state(device: Machine, tmp_path: Path, guard: bool) -> None:
    bundle = tiny.save_bundle(tmp_path / "b", tiny.BFLOAT16, tiny.bfloat16_model())
    x = np.random.default_rng(0).integers(0, 4, size=(10, 2)).astype(np.float32)
    with device.open(bundle, guard=guard) as session:
        stream = session.stream()
        np.testing.assert_array_equal(stream.feed(x[:6], "all")[0], 1.5 + x.cumsum(0)[:6])
        for row, wanted in zip(x[6:], 1.5 + x.cumsum(0)[6:], strict=True):
            np.testing.assert_array_equal(stream.step(row)[0], wanted)


def test_streams_run_in_threads_each_in_a_cuda_stream_of_its_own(session: TrtSession) -> None:
    histories = [[(i * k + k) % tiny.VOCAB for i in range(60)] for k in range(1, 5)]

    def run(history: list[int]) -> tuple[int, np.ndarray]:
        stream = session.stream()
        first = stream.feed(history[:11], "all")[0]
        rest = np.stack([stream.step(token)[0].copy() for token in history[11:]])
        return stream.memory.stream, np.concatenate([first, rest])

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, histories))
    assert len({stream for stream, _ in results}) == 4
    for history, (_, values) in zip(histories, results, strict=True):
        close_to_formula(values, tiny.tokens_outputs(history))


def test_the_guard_finds_nan_before_it_is_committed(device: Machine, tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "b", tiny.OVERFLOW, tiny.overflow_model())
    with device.open(bundle, guard=True) as session:
        stream = session.stream()
        stream.feed([[1.0], [2.0]])
        before = stream.snapshot()
        for call in (lambda: stream.step([1e38]), lambda: stream.feed([[1.0], [1e30], [1.0]])):
            with pytest.raises(NonFiniteError):
                call()
            assert stream.snapshot() == before


# What crosses the bus, and what is called.


@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_is_a_launch_the_appends_and_a_copy_of_the_output(
    device: Machine, session: TrtSession, batch: int
) -> None:
    stream = session.stream(batch)
    layout = stream._lane.arena.layout
    stream.step([1] * batch)
    stream.snapshot()  # waits
    device.cuda.moved.clear()
    with device.cuda.counted() as calls:
        stream.step([2] * batch)
    assert calls == {
        "cudaGraphLaunch": 1,
        "cudaMemcpyAsync DeviceToHost": 1,
        "cudaStreamSynchronize": 1,
        "cudaMemcpy2DAsync": 3,  # rings as small as these lie at no even distance: one copy each
    }
    tokens_and_positions = layout.positions.end - layout.step_inputs["tokens"].offset
    assert device.cuda.moved["HostToDevice"] == tokens_and_positions
    assert device.cuda.moved["DeviceToHost"] == layout.step_outputs["logits"].nbytes


def test_after_the_first_step_nothing_is_allocated(device: Machine, session: TrtSession) -> None:
    stream = session.stream(2)
    stream.step([1, 2])
    stream.feed(np.ones((2, 11), np.int64))
    contexts = len(device.tensorrt.contexts)
    with device.cuda.counted() as calls:
        for i in range(50):
            stream.step([i % 11, 3])
            stream.feed(np.full((2, 1 + i % 9), 5))
            stream.snapshot()
            stream.reset([1])
    assert not calls.keys() & {"cudaMalloc", "cudaHostAlloc", "cudaGraphInstantiate"}
    assert len(device.tensorrt.contexts) == contexts


def test_a_snapshot_a_restore_and_a_fork_are_one_copy_each(device: Machine, session: TrtSession) -> None:
    stream, other = session.stream(2), session.stream(2)
    for i in range(3):
        stream.step([i, i])
    device.cuda.drain()
    device.cuda.moved.clear()
    with device.cuda.counted() as calls:
        taken = stream.snapshot()
    assert calls == {"cudaMemcpyAsync DeviceToHost": 1, "cudaStreamSynchronize": 1}
    with device.cuda.counted() as calls:
        other.restore(taken)
    assert calls == {"cudaMemcpyAsync HostToDevice": 1, "cudaStreamSynchronize": 1}
    device.cuda.moved.clear()
    copy = session.stream(2)
    with device.cuda.counted() as calls:
        copy._lane.copy([(stream._lane, None)])
    assert calls == {"cudaMemcpyAsync DeviceToDevice": 1, "cudaStreamSynchronize": 2}


def test_each_direction_is_captured_once_after_one_run_of_its_own(device: Machine, session: TrtSession) -> None:
    with device.cuda.counted() as calls:
        stream = session.stream()
    assert calls["cudaStreamBeginCapture"] == calls["cudaGraphInstantiate"] == 2
    assert [context.issued for context in device.tensorrt.contexts] == [2, 2]  # the run, the recording
    assert len(device.cuda.executables) == 2
    assert not device.cuda.graphs
    first, second = device.tensorrt.contexts
    for name in ("0.decayed.m", "1.count.n"):
        assert first.addresses[f"past.{name}"] == second.addresses[f"present.{name}"]
        assert second.addresses[f"past.{name}"] == first.addresses[f"present.{name}"]
    stream.step(1)
    stream.feed([1, 2, 3, 4, 5])
    assert [context.issued for context in device.tensorrt.contexts] == [2, 2, 1]  # chunks have no graph
    assert [context.profile for context in device.tensorrt.contexts] == [0, 0, 1]


def test_an_engine_that_captures_by_itself_is_not_captured_again(bundle: Bundle) -> None:
    with machine("tensorrt-rtx") as here, here.open(bundle) as session:
        stream = session.stream()
        stream.feed([1, 2, 3, 4, 5])
        stream.step(1)
        assert "cudaStreamBeginCapture" not in here.cuda.calls
        assert [context.own_graph for context in here.tensorrt.contexts] == [True, True, False]


def test_an_engine_that_cannot_be_captured_runs_without_graphs_and_says_so(device: Machine, bundle: Bundle) -> None:
    device.tensorrt.uncapturable = True
    said: list[str] = []
    with device.open(bundle, announce=said.append) as session:
        stream = session.stream()
        assert not session.engine.cuda_graphs
        assert len(said) == 1
        assert "CUDA graphs are off" in said[0]
        assert "not permitted when stream is capturing" in said[0]
        close_to_formula(np.stack([stream.step(i)[0].copy() for i in range(11)]), tiny.tokens_outputs(range(11)))
        session.stream()
        assert len(said) == 1


def test_the_device_is_free_again_when_nobody_refers_to_a_session(device: Machine, bundle: Bundle) -> None:
    session = device.open(bundle, top_k=2)
    streams = [session.stream(), session.stream(2)]
    streams.append(streams[0].fork())
    streams[0].feed(range(10), "all")
    session.close()
    del session, streams
    device.tensorrt.contexts.clear()
    gc.collect()
    assert not device.cuda.live
    assert not device.cuda.pinned
    assert not device.cuda.executables
    assert not device.cuda.streams


# The largest outputs.


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("top_k", [0, 2])
def test_the_largest_outputs_are_those_of_a_step(device: Machine, bundle: Bundle, top_k: int, k: int) -> None:
    with device.open(bundle, top_k=top_k) as session:
        stream, other = session.stream(2), session.stream(2)
        for i in range(9):
            values, indices = stream.step_top([i, 10 - i], k)
            logits = other.step([i, 10 - i])
            wanted = np.argsort(-logits, axis=1, kind="stable")[:, :k]
            np.testing.assert_array_equal(indices, wanted)
            np.testing.assert_array_equal(values, np.take_along_axis(logits, wanted, 1))
            assert (values.dtype, indices.dtype) == (np.float32, np.int64)
        np.testing.assert_array_equal(stream.feed([[1, 2, 3]] * 2, "all"), other.feed([[1, 2, 3]] * 2, "all"))
        assert stream.snapshot() == other.snapshot()


def test_an_engine_that_picks_sends_what_it_picked_alone(device: Machine, bundle: Bundle) -> None:
    with device.open(bundle, top_k=1) as session:
        stream = session.stream()
        device.cuda.moved.clear()
        stream.step_top(3)
        assert device.cuda.moved["DeviceToHost"] == 256 + 4  # a value, and an index in the next aligned place


def test_a_bfloat16_output_is_picked_too(device: Machine, tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "b", tiny.BFLOAT16, tiny.bfloat16_model())
    with device.open(bundle, top_k=1) as session:
        values, indices = session.stream().step_top([1.0, 3.0])
    assert values.tolist() == [[4.5]]
    assert indices.tolist() == [[1]]


@pytest.mark.parametrize("k", [0, 6, 1.0])
def test_more_than_there_is_cannot_be_picked(session: TrtSession, k: Any) -> None:
    with pytest.raises(InputError, match=r"step_top with k=.* of logits \[5\]"):
        session.stream().step_top(1, k)


# What goes wrong.


def test_a_larger_batch_than_the_engines_names_the_command_that_builds_another(device: Machine, bundle: Bundle) -> None:
    with (
        device.open(bundle, max_batch=2, top_k=1) as session,
        pytest.raises(
            InputError,
            match=r"(?s)batch 3: the engine of model0.onnx was built for batches of up to 2.*"
            r"edgemem build .* --target local --max-batch 3 --top-k 1",
        ),
    ):
        session.stream(3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"status": CudaError.cudaErrorInsufficientDriver, "driver": 0}, "no NVIDIA driver"),
        ({"status": CudaError.cudaErrorInsufficientDriver, "driver": 11040}, r"driver supports CUDA 11\.4"),
        ({"devices": 0}, "the driver reports no devices"),
    ],
)
@pytest.mark.parametrize("runtime", ["tensorrt", "tensorrt-rtx"])
def test_without_a_usable_device_it_says_why(
    bundle: Bundle, runtime: str, options: dict[str, Any], message: str
) -> None:
    with machine(runtime, **options), pytest.raises(RuntimeUnavailableError, match=message):
        edgemem.open(bundle.path, runtime)


def test_tensorrt_is_not_imported_where_cuda_does_not_start(bundle: Bundle) -> None:
    """It would end the interpreter."""
    with machine(status=CudaError.cudaErrorInsufficientDriver) as here:

        class Deadly:
            def __getattr__(self, name: str) -> Any:
                if name.startswith("__"):
                    raise AttributeError(name)
                raise AssertionError(f"tensorrt.{name} was touched")

        deadly = Deadly()
        deadly.__spec__ = here.tensorrt.__spec__  # type: ignore[attr-defined]
        sys.modules["tensorrt"] = deadly  # type: ignore[assignment]
        for runtime in ("tensorrt", "auto"):
            if runtime == "auto":
                assert isinstance(edgemem.open(bundle.path, runtime).runtime, str)
            else:
                with pytest.raises(RuntimeUnavailableError):
                    edgemem.open(bundle.path, runtime)


def test_a_device_or_a_state_that_it_does_not_have_is_refused(
    device: Machine, bundle: Bundle, growing_bundle: Bundle
) -> None:
    with pytest.raises(RuntimeUnavailableError, match="runs on a CUDA device, device 'cpu' was asked for"):
        edgemem.open(bundle.path, "tensorrt", device="cpu")
    with pytest.raises(RuntimeUnavailableError, match="states of fixed size"):
        edgemem.open(growing_bundle.path, "tensorrt")


def test_a_device_that_is_full_says_what_was_asked_and_what_there_is(device: Machine, session: TrtSession) -> None:
    device.cuda.limit = 100
    with pytest.raises(EdgememError, match=r"[\d,]+ bytes were asked for; of 100 bytes 100 are free"):
        session.stream()


def test_a_device_too_full_for_a_context_says_so(device: Machine, session: TrtSession) -> None:
    device.tensorrt.context_limit = 0
    with pytest.raises(
        EdgememError, match=r"no execution context for model0.onnx: out of memory \(it asks for 4,096 bytes .*are free"
    ):
        session.stream()


@pytest.mark.parametrize("call", [lambda s: s.step(1), lambda s: s.step_top(1), lambda s: s.feed([1, 2, 3])])
def test_a_run_that_fails_leaves_the_stream_as_it_was(
    device: Machine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, call: Callable[[Any], Any]
) -> None:
    with device.open(bundle, cuda_graphs=False, top_k=1) as session:
        stream = session.stream()
        stream.feed([1, 2, 3, 4, 5, 6, 7])
        before = stream.snapshot()
        for context in device.tensorrt.contexts:
            monkeypatch.setattr(context, "execute_async_v3", lambda stream, context=context: context._fail("a bad day"))
        with pytest.raises(EdgememError, match="TensorRT failed at position 7: a bad day"):
            call(stream)
        assert stream.snapshot() == before
        monkeypatch.undo()


def test_a_closed_session_runs_nothing_more(device: Machine, bundle: Bundle) -> None:
    with device.open(bundle, top_k=1) as session:
        stream = session.stream()
        stream.step(1)
    for call in (
        lambda: stream.step(1),
        lambda: stream.step_top(1),
        lambda: stream.feed([1, 2, 3]),
        session.stream,
        stream.fork,
    ):
        with pytest.raises(EdgememError, match="closed"):
            call()


# What "auto" takes.


@pytest.fixture
def fresh(tmp_path: Path) -> Bundle:
    return tiny.save_bundle(tmp_path / "fresh", tiny.TOKENS, tiny.tokens_model())


def test_auto_takes_the_engines_that_a_bundle_carries_and_builds_none(device: Machine, fresh: Bundle) -> None:
    with edgemem.open(fresh.path, device="cpu") as session:
        assert session.runtime == "onnxruntime"
    with edgemem.open(fresh.path) as session:
        assert session.runtime == "onnxruntime"
    device.open(fresh).close()
    with edgemem.open(fresh.path) as session:
        assert session.runtime == "tensorrt"
    with edgemem.open(fresh.path, device="cpu") as session:
        assert session.runtime == "onnxruntime"


def test_auto_falls_back_where_the_engine_is_refused_and_says_so(
    fresh: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(registry._LOG, "warning", lambda text, *values: said.append(text % values))
    with machine() as here:
        here.open(fresh).close()
        (fresh.path / "engines/local/model0.plan").write_bytes(b"cut")
        with edgemem.open(fresh.path) as session:
            assert session.runtime == "onnxruntime"
        (line,) = said
        assert line.startswith("tensorrt: ")
        assert "cut short or changed" in line
        assert line.endswith("Using onnxruntime instead.")
        with pytest.raises(EngineError, match="cut short or changed"):
            edgemem.open(fresh.path, "tensorrt")
    with machine(devices=0), edgemem.open(fresh.path) as session:
        assert session.runtime == "onnxruntime"


def test_auto_takes_tensorrt_without_an_engine_only_where_there_is_nothing_else(
    device: Machine, fresh: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert registry.choose(fresh, "auto").name == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert registry.choose(fresh, "auto").name == "tensorrt"
    assert registry.choose(fresh, "cpu").name == "onnxruntime"
    device.cuda.devices = 0
    assert registry.choose(fresh, "auto").name == "onnxruntime"


def test_each_runtime_opens_its_own_flavour(fresh: Bundle) -> None:
    for runtime, wanted in (("tensorrt", TrtSession), ("tensorrt-rtx", RtxSession)):
        with machine(runtime) as here:
            here.open(fresh).close()
            with edgemem.open(fresh.path, runtime) as session:
                assert type(session) is wanted
                assert session.runtime == runtime
                assert session.device == "cuda"
                close_to_formula(session.stream().feed([1, 2, 3, 4, 5], "all")[0], tiny.tokens_outputs([1, 2, 3, 4, 5]))
