"""A bundle is complete, says what it holds, and replaces an old one only when it has passed its check."""

from __future__ import annotations

import errno
import json
import os
import stat

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

import edgemem
from edgemem.bundle import GraphFile, open_bundle
from edgemem.contract import METADATA_KEY, Contract
from edgemem.errors import BundleError, EdgememError, ExportError, VerificationError
from edgemem.export import ExportOptions, export_bundle, growing_twin, load_source, source_of
from edgemem.export.graph import export_graph
from edgemem.export.sources import ModuleSource
from tests.shared import TracedModule


def test_the_contract_lies_in_the_graph_and_in_the_manifest(hybrid_bundle):
    model = onnx.load(hybrid_bundle.file("model.onnx"), load_external_data=False)
    (prop,) = [p for p in model.metadata_props if p.key == METADATA_KEY]
    assert Contract.from_json(json.loads(prop.value)) == hybrid_bundle.contract


def test_the_graph_is_valid_opset_20_of_plain_operators(hybrid_bundle):
    path = hybrid_bundle.file("model.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions


def test_state_shapes_are_static_and_batch_and_time_are_free(hybrid_bundle):
    model = onnx.load(hybrid_bundle.file("model.onnx"), load_external_data=False)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes["tokens"] == ["batch", "time"]
    assert shapes["position"] == ["batch"]
    assert shapes["logits"] == ["batch", "selected", 256]
    assert shapes["append.0.window.k"] == ["batch", 2, "time", 8]
    for state in hybrid_bundle.contract:
        assert shapes[state.input_name] == ["batch", *state.shape]


def test_sorted_names_pair_the_states_of_a_sealed_bundle(sealed_bundle):
    contract = sealed_bundle.contract
    pasts = sorted(name for name in contract.graph_inputs if name.startswith("past."))
    presents = sorted(name for name in contract.graph_outputs if name.startswith("present."))
    assert [name.removeprefix("past.") for name in pasts] == [name.removeprefix("present.") for name in presents]
    assert len(pasts) == len(contract.states)


def test_weights_are_stored_once_under_the_modules_own_names(hybrid, hybrid_bundle):
    tensors = safetensors.torch.load_file(hybrid_bundle.file("weights.safetensors"))
    state = hybrid.module.state_dict()
    assert set(state) <= set(tensors)
    assert all(tensors[name].equal(value) for name, value in state.items())
    stored = sum(t.numel() * t.element_size() for t in tensors.values())
    parameters = sum(t.numel() * t.element_size() for t in state.values())
    # The exporter folds the transpose of a small tied embedding, and tables of a few numbers; nothing else.
    assert stored - parameters <= state["embedding"].numel() * 4 + 4096


def test_nothing_of_this_machine_is_in_the_graph(hybrid_bundle):
    assert os.getcwd().encode() not in hybrid_bundle.file("model.onnx").read_bytes()


def test_files_are_readable_by_others(hybrid_bundle):
    for name in (*hybrid_bundle.manifest.files, "manifest.json"):
        assert stat.S_IMODE((hybrid_bundle.path / name).stat().st_mode) & 0o444 == 0o444


def test_the_sealed_bundle_computes_the_same_numbers(hybrid_bundle, sealed_bundle):
    tokens = np.random.default_rng(0).integers(0, 256, 30)
    with edgemem.open(hybrid_bundle.path, threads=1) as a, edgemem.open(sealed_bundle.path, threads=1) as b:
        one, two = a.stream(), b.stream()
        for token in tokens.tolist():
            np.testing.assert_array_equal(one.step(token), two.step(token))
        assert one.position == two.position == 30
        assert two.state()["position"].tolist() == [30]


@pytest.mark.long
def test_a_twin_is_rebuilt_from_the_bundle_alone(small_bundle, tmp_path):
    growing = open_bundle(growing_twin(small_bundle, tmp_path / "growing"))
    assert not growing.contract.has_fixed_size
    assert growing.contract.state_bytes_at(100) == 100 * 2 * 2 * 16 * 4  # k and v, heads, width, float32


def test_a_users_own_module_has_no_twin(gru, tmp_path):
    bundle = export_bundle(gru, tmp_path / "gru", ExportOptions(verify=False))
    with pytest.raises(ExportError, match="user's own module"):
        source_of(bundle)


def test_a_shorter_chunk_can_be_asked_for_and_a_longer_one_is_refused(small, tmp_path):
    bundle = export_bundle(small, tmp_path / "short", ExportOptions(max_chunk=2))
    assert bundle.contract.max_chunk == bundle.max_time == 2
    with pytest.raises(ExportError, match="from 1 to 4"):
        export_bundle(small, tmp_path / "long", ExportOptions(max_chunk=5))


def test_something_that_is_no_bundle_is_never_overwritten(small, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("ten years of work")
    with pytest.raises(BundleError, match="is not an edgemem bundle"):
        export_bundle(small, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "ten years of work"


def test_an_output_folder_that_cannot_be_made_is_a_clear_error(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgememError, match="cannot write"):
        export_bundle(small, tmp_path / "file" / "bundle")


@pytest.mark.parametrize("stage", ["onnx_ir.save", "safetensors.torch.save_file"])
def test_a_full_disk_leaves_the_old_bundle_and_nothing_else(small, tmp_path, monkeypatch, stage):
    out = tmp_path / "bundle"
    export_bundle(small, out, ExportOptions(verify=False))
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stage, full)
    with pytest.raises(EdgememError, match="No space left on device"):
        export_bundle(small, out, ExportOptions(verify=False))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_bundle_that_fails_its_check_is_never_put_in_place(tmp_path):
    source = load_source("tests.export.modules:NeverChangesState")
    with pytest.raises(ExportError, match="never changes"):
        export_bundle(source, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


class TwoGraphs(ModuleSource):
    """Two graphs of one model: one for a single step, one for the rest."""

    def trace(self, module, contract):
        return [
            (GraphFile("step.onnx", 1, 1), export_graph(module, contract, max_time=1)),
            (GraphFile("chunk.onnx", 2, contract.max_chunk), export_graph(module, contract)),
        ]


def test_a_model_may_have_a_step_graph_and_a_chunk_graph_over_one_weights_file(gru, tmp_path):
    two = TwoGraphs(gru.module, gru.name)
    single = export_bundle(gru, tmp_path / "one", ExportOptions(verify=False))
    double = export_bundle(two, tmp_path / "two", ExportOptions(steps=20))
    assert [graph.file for graph in double.manifest.graphs] == ["step.onnx", "chunk.onnx"]
    assert double.weights_bytes == single.weights_bytes
    step = onnx.load(double.file("step.onnx"), load_external_data=False)
    assert [d.dim_param or d.dim_value for d in step.graph.input[0].type.tensor_type.shape.dim][1] == 1
    features = np.random.default_rng(0).standard_normal((2, 9, *double.contract.input.shape)).astype(np.float32)
    with edgemem.open(single.path) as first, edgemem.open(double.path) as second:
        expected, got = first.stream(2).feed(features, outputs="all"), second.stream(2).feed(features, outputs="all")
    np.testing.assert_allclose(got, expected, atol=1e-6)


class OneMore(TracedModule):
    """A source whose reference is wrong."""

    def reference(self, x, indices=None):
        return super().reference(x, indices) + 1


def test_a_bundle_is_compared_with_the_reference_of_its_source(gru, tmp_path):
    wrong = OneMore(gru.module, "gru", traced=gru.traced)
    with pytest.raises(VerificationError, match="full-sequence"):
        export_bundle(wrong, tmp_path / "bundle", ExportOptions(steps=8))


def test_what_no_graph_uses_is_not_stored_for_a_users_own_module(tmp_path):
    source = load_source("tests.export.modules:Gru")
    source.module.register_buffer("unused", torch.zeros(1000))
    bundle = export_bundle(source, tmp_path / "bundle", ExportOptions(verify=False))
    assert "unused" not in safetensors.torch.load_file(bundle.file("weights.safetensors"))
