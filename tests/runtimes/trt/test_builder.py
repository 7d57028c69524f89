"""Compiling with the real TensorRT-RTX, which needs no GPU."""

import os
import signal
import threading
from dataclasses import replace

import onnx
import onnx.parser
import pytest

from edgemem.bundle import GraphFile, open_bundle, write_bundle
from edgemem.contract import StateSpec
from edgemem.errors import EdgememError, EngineError
from edgemem.runtimes.trt.builder import _monitor, build_engine, parse
from edgemem.runtimes.trt.builder import _why_not_built as why_not_built
from edgemem.runtimes.trt.engine import build_to
from edgemem.runtimes.trt.flavour import BuildLog, Cuda, Flavour, load_flavour
from edgemem.runtimes.trt.io import io_difference, network_io
from edgemem.runtimes.trt.options import BuildOptions
from tests.handmade import SUMMER, SUMMER_GRAPH, write_graph, write_reciter

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, the compiler that needs no GPU, is not installed")


LOST = """
<ir_version: 8, opset_import: ["" : 20]>
lost (float[batch, time, 2] features, float[batch, 2] "past.0.sum.total", float[batch, 2] "past.1.sum.lost")
    => (float[batch, time, 2] sums, float[batch, 2] "present.0.sum.total", float[batch, 2] "present.1.sum.lost")
<int64[1] axis = {1}>
{
    past = Unsqueeze("past.0.sum.total", axis)
    sums = Add(features, past)
    "present.0.sum.total" = ReduceSum<keepdims = 0>(sums, axis)
    "present.1.sum.lost" = ReduceMax<keepdims = 0>(sums, axis)
}
"""


@pytest.fixture(scope="module")
def rtx():
    return load_flavour("tensorrt_rtx")


@pytest.fixture(scope="module")
def reciter(tmp_path_factory):
    return open_bundle(write_reciter(tmp_path_factory.mktemp("bundles") / "reciter"))


def test_an_engine_carries_the_contract_in_its_name_and_lists_its_inputs_and_outputs(rtx, reciter):
    (graph,) = reciter.manifest.graphs
    parsed = parse(reciter, graph, rtx)
    assert parsed.network.name == reciter.contract.fingerprint
    assert io_difference(network_io(parsed.network), reciter.contract, graph) == ""
    built = build_engine(reciter, graph, rtx, BuildOptions())
    assert [tensor.name for tensor in built.io] == [*reciter.contract.graph_inputs, *reciter.contract.graph_outputs]
    assert reciter.contract.fingerprint.encode() in built.plan
    assert len(built.profiles) == 2


def test_the_largest_outputs_can_be_picked_in_the_engine(rtx, reciter):
    built = build_engine(reciter, reciter.manifest.graphs[0], rtx, BuildOptions(top_k=5, max_batch=3))
    top = {tensor.name: (tensor.dtype, tensor.shape) for tensor in built.io if tensor.name.startswith("top_")}
    assert top["top_values"] == ("float32", (-1, -1, 5))
    assert top["top_indices"][0] in ("int32", "int64")
    with pytest.raises(EngineError, match=r"top_k=300 needs outputs \[B, S, V\] with V of 300"):
        build_engine(reciter, reciter.manifest.graphs[0], rtx, BuildOptions(top_k=300))


def test_phases_are_reported_as_they_go(rtx, reciter):
    seen = []
    build_engine(reciter, reciter.manifest.graphs[0], rtx, BuildOptions(), progress=lambda *step: seen.append(step))
    assert any(done == total > 0 for _, done, total in seen)
    assert all(0 <= done <= total for _, done, total in seen)


def test_a_state_that_no_layer_reads_is_an_error(rtx, tmp_path):
    contract = replace(SUMMER, states=(*SUMMER.states, StateSpec("1.sum.lost", (2,))))
    bundle = open_bundle(write_graph(tmp_path / "lost", LOST, contract, {}))
    with pytest.raises(EngineError, match=r"no layer of the engine reads the inputs past\.1\.sum\.lost"):
        parse(bundle, bundle.manifest.graphs[0], rtx)


def test_a_graph_of_another_contract_is_refused(rtx, reciter, tmp_path):
    wider = replace(SUMMER, states=(StateSpec("0.sum.total", (3,)),))
    bundle = open_bundle(write_graph(tmp_path / "other", SUMMER_GRAPH, wider, {}))
    with pytest.raises(EngineError, match=r"'past\.0\.sum\.total' has shape \[any, 2\], the contract has \[batch, 3\]"):
        parse(bundle, bundle.manifest.graphs[0], rtx)


@pytest.mark.parametrize("time", ["1", "time"])
def test_a_step_graph_and_a_chunk_graph_become_an_engine_each(rtx, tmp_path, time):
    whole = open_bundle(write_graph(tmp_path / "pair", SUMMER_GRAPH, SUMMER, {}))
    step = onnx.parser.parse_model(SUMMER_GRAPH.replace("batch, time, 2", f"batch, {time}, 2"))
    with write_bundle(whole.path) as writer:
        onnx.save(onnx.parser.parse_model(SUMMER_GRAPH), writer.folder / "chunk.onnx")
        onnx.save(step, writer.folder / "step.onnx")
        graphs = (GraphFile("step.onnx", 1, 1), GraphFile("chunk.onnx", 2, SUMMER.max_chunk))
        writer.finish(replace(whole.manifest, graphs=graphs))
    pair = open_bundle(whole.path)
    sidecars = build_to(tmp_path / "engines", pair, rtx, BuildOptions(max_batch=2))
    assert {path.name for path in (tmp_path / "engines").iterdir()} == {
        *("step.plan", "step.engine.json", "chunk.plan", "chunk.engine.json")
    }
    ranges = [
        [(profile["features"]["smallest"][1], profile["features"]["largest"][1]) for profile in sidecar.profiles]
        for sidecar in sidecars
    ]
    assert ranges == [[(1, 1)], [(2, SUMMER.max_chunk)]]


def test_a_file_that_is_no_graph_is_refused_with_the_parsers_words(rtx, reciter, tmp_path):
    graph = onnx.helper.make_graph([onnx.helper.make_node("NoSuchOperator", [], ["y"])], "broken", [], [])
    with write_bundle(tmp_path / "broken") as writer:
        onnx.save(onnx.helper.make_model(graph), writer.folder / "model.onnx")
        writer.finish(reciter.manifest)
    bundle = open_bundle(tmp_path / "broken")
    with pytest.raises(EngineError, match=r"does not read model\.onnx"):
        parse(bundle, bundle.manifest.graphs[0], rtx)


def test_compute_capabilities_are_those_that_the_compiler_knows(rtx, reciter):
    (graph,) = reciter.manifest.graphs
    assert build_engine(reciter, graph, rtx, BuildOptions(compute_capabilities=("8.6", "12.0"))).plan
    with pytest.raises(EngineError, match=r"does not build for compute capability 6\.1: it knows 7\.5"):
        build_engine(reciter, graph, rtx, BuildOptions(compute_capabilities=("6.1",)))


def test_control_c_stops_the_builder_and_not_the_interpreter(rtx, reciter):
    def press(phase, done, total):
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background has it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            build_engine(reciter, reciter.manifest.graphs[0], rtx, BuildOptions(), progress=press)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_monitor_says_stop_once_it_is_cancelled(rtx):
    cancelled = threading.Event()
    monitor = _monitor(rtx.module, lambda *step: None, cancelled)
    monitor.phase_start("Building", None, 3)
    assert monitor.step_complete("Building", 0) is True
    cancelled.set()
    assert monitor.step_complete("Building", 1) is False


def said(*errors):
    log = BuildLog()
    for error in errors:
        log.add("error", error)
    return log


def explain(log, **options):
    flavour = Flavour(
        "tensorrt", None, "10.3.0", Cuda(device="Orin", free_bytes=1_000_000_000, total_bytes=8_000_000_000)
    )
    graph = type("Graph", (), {"file": "model.onnx"})
    return str(why_not_built(flavour, graph, log, BuildOptions(**options)))


def test_out_of_memory_says_what_was_asked_and_what_there_is():
    text = explain(
        said("[virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 2147483648 bytes.)"),
        workspace_bytes=512 << 20,
    )
    assert "asked for 2,147,483,648 bytes" in text
    assert "1,000,000,000 of 8,000,000,000 bytes were free" in text
    assert "workspace limit: 512 MiB" in text
    assert "--workspace" in text


@pytest.mark.parametrize(
    "words",
    [
        "Cannot compile for target(s) sm75, because the model contains HW-specific datatypes: b16.",
        "Cannot compile operation 'a' for Turing (SM75): FP32 GEMM is not supported.",
        "BF16 precision specified but not supported on this platform.",
    ],
)
def test_a_precision_that_the_target_lacks_is_named(words):
    text = explain(said(words))
    assert "does not support a precision of the graph" in text
    assert "--dtype fp16" in text


def test_the_compiler_itself_says_that_turing_multiplies_no_float32(rtx, tmp_path):
    graph = """
<ir_version: 8, opset_import: ["" : 20]>
wide (float[batch, time, 2] features, float[batch, 2] "past.0.sum.total")
    => (float[batch, time, 2] sums, float[batch, 2] "present.0.sum.total")
<float[2, 2] matrix = {1, 2, 3, 4}, int64[1] axis = {1}>
{
    past = Unsqueeze("past.0.sum.total", axis)
    product = MatMul(features, matrix)
    sums = Add(product, past)
    "present.0.sum.total" = ReduceSum<keepdims = 0>(sums, axis)
}
"""
    bundle = open_bundle(write_graph(tmp_path / "wide", graph, SUMMER, {}))
    assert build_engine(bundle, bundle.manifest.graphs[0], rtx, BuildOptions()).plan
    with pytest.raises(EngineError, match="does not support a precision of the graph"):
        build_engine(bundle, bundle.manifest.graphs[0], rtx, BuildOptions(compute_capabilities=("7.5",)))


def test_any_other_failure_carries_the_builders_words():
    assert "Skipping tactic: odd" in explain(said("Skipping tactic: odd"))
    assert "no reason given" in explain(said())


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"workspace_bytes": 0}, {"top_k": -1}, {"top_k": 4000}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(EdgememError, match=next(iter(wrong))):
        BuildOptions(**wrong)
