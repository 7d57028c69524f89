"""From a folder to a bundle that is held to the model's own full sequence: one family for each way to make a chunk."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import edgemem  # noqa: E402
from benchmarks.families import VOCAB, tiny_model  # noqa: E402
from edgemem.errors import VerificationError  # noqa: E402
from edgemem.export import ExportOptions, export_bundle, load_source  # noqa: E402
from edgemem.runtimes.trt.builder import build_engine  # noqa: E402
from edgemem.runtimes.trt.flavour import load_flavour  # noqa: E402
from edgemem.runtimes.trt.options import BuildOptions  # noqa: E402
from tests.export.hf.traced import TracedTwoGraphs  # noqa: E402

STEPS = 70


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    def save(family):
        folder = tmp_path_factory.mktemp("checkpoints") / family
        tiny_model(family).save_pretrained(folder)
        return folder

    return save


FORMS = {
    "mamba": ("scan", {}),
    "mamba2": ("block", {}),
    "lfm2": ("native", {"memory": "sinks=2,window=16"}),
    "recurrent_gemma": ("lifted", {}),
    "qwen3_next": ("scan", {"memory": "window=8"}),
}
"""One family for each way to make a chunk, and one whose Scan shares keys between heads."""
RECURRENCES = {
    "mamba": {"CausalConv", "SelectiveState"},
    "mamba2": {"CausalConv", "SelectiveState"},
    "lfm2": {"CausalConv"},
    "recurrent_gemma": set(),
    "qwen3_next": {"CausalConv", "GatedDelta"},
}
"""The operators that each computes its recurrences with in a step."""
FAMILIES = [pytest.param(name, marks=[pytest.mark.long] * (name != "mamba")) for name in FORMS]


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The source and the bundle of one of :data:`FORMS`, checked."""

    @functools.cache
    def export(family):
        source = load_source(str(checkpoint(family)), **FORMS[family][1])
        return source, export_bundle(source, tmp_path_factory.mktemp("bundles") / family, ExportOptions(steps=STEPS))

    return export


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_becomes_a_bundle_of_two_graphs(family, exported):
    source, bundle = exported(family)
    report = bundle.manifest.verification
    assert source.graphs.strategy == FORMS[family][0]
    assert [graph.file for graph in bundle.manifest.graphs] == ["step.onnx", "chunk.onnx"]
    assert report["step_error"] <= 1e-4
    assert max(report["chunk_errors"].values()) <= 1e-4
    for file, extra in (("native.step.onnx", set()), ("native.chunk.onnx", {"CausalConv"})):
        graph = onnx.load(bundle.path / file, load_external_data=False).graph
        own = {node.op_type for node in graph.node if node.domain == "edgemem"}
        assert (
            own - {"MemoryAttention", "MatMul", "RMSNorm", "SwiGLU", "NormMatMul", "GatedMlp"}
            == RECURRENCES[family] - extra
        )
    # Weights are stored once, whatever each trace calls them.
    stored = sum(tensor.nbytes for tensor in {t.data_ptr(): t for t in source.module.state_dict().values()}.values())
    assert bundle.weights_bytes < 1.2 * stored + 20_000


def test_the_full_sequence_gives_the_outputs_that_are_asked_for(checkpoint):
    for family, options in (("mamba", {}), ("lfm2", {"memory": "window=4"})):
        source = load_source(str(checkpoint(family)), **options)
        x, indices = torch.arange(9)[None] % 7, torch.tensor([0, 4, 8])
        with torch.inference_mode():
            torch.testing.assert_close(source.reference(x, indices), source.reference(x)[:, indices])


@pytest.mark.parametrize("family", FAMILIES)
def test_both_graphs_compile(family, exported):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx, the compiler that needs no GPU, is not installed")
    bundle = exported(family)[1]
    for graph in bundle.manifest.graphs:
        assert build_engine(bundle, graph, load_flavour("tensorrt_rtx"), BuildOptions()).plan


def test_a_bundle_of_single_steps_has_one_graph_and_streams_what_the_model_computes(checkpoint, tmp_path):
    source = load_source(str(checkpoint("xlstm")))
    bundle = export_bundle(source, tmp_path / "bundle", ExportOptions(max_chunk=1, steps=8))
    assert [(graph.file, graph.max_time) for graph in bundle.manifest.graphs] == [("step.onnx", 1)]
    data = np.random.default_rng(0).integers(0, VOCAB, (2, 20))
    with torch.inference_mode():
        expected = source.reference(torch.from_numpy(data)).numpy()
    with edgemem.open(bundle.path) as session:
        np.testing.assert_allclose(session.stream(2).feed(data, outputs="all"), expected, atol=1e-4, rtol=1e-4)


def test_a_model_whose_steps_differ_from_its_full_sequence_is_not_written(checkpoint, tmp_path):
    source = load_source(str(checkpoint("rwkv")))
    honest = source.reference
    object.__setattr__(source, "reference", lambda *given: honest(*given).roll(1, dims=-1))
    with pytest.raises(VerificationError, match="full-sequence"):
        export_bundle(source, tmp_path / "bundle", ExportOptions(max_chunk=1, steps=8))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.long
def test_a_chunk_that_is_one_loop_takes_small_weights_too(checkpoint, tmp_path):
    source = load_source(str(checkpoint("xlstm")))
    source = replace(source, graphs=TracedTwoGraphs(source.module))
    plain = export_bundle(source, tmp_path / "plain", ExportOptions(verify=False))
    small = export_bundle(source, tmp_path / "small", ExportOptions(steps=STEPS, dtype="fp16", weights="int8"))
    assert source.graphs.strategy == "lifted"
    assert small.weights_bytes < 0.7 * plain.weights_bytes  # no matrix is stored twice


@pytest.mark.long
def test_a_tied_table_in_half_precision_is_looked_up_one_way_and_multiplied_the_other(checkpoint, tmp_path):
    bundle = export_bundle(
        load_source(str(checkpoint("falcon_mamba"))), tmp_path / "bundle", ExportOptions(steps=8, dtype="fp16")
    )
    precision = bundle.manifest.precision
    assert set(precision.lookups) & set(precision.halved) & set(precision.transposed)
