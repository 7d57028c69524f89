"""Bounded decoders as bundles: verified, and run without torch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch

import edgemem
from edgemem.errors import InputError
from edgemem.export import ExportOptions, export_bundle
from edgemem.export.hf.loading import load, load_model
from edgemem.export.verify.far import FAR_POSITIONS
from edgemem.manifest import LoadOptions
from tests.export.hf.decoders import decoder, tokens


def folder_of(family, tmp_path_factory, **changes):
    folder = tmp_path_factory.mktemp(family)
    decoder(family, **changes).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def streaming(tmp_path_factory):
    folder = folder_of("gemma2", tmp_path_factory)
    source = load(folder, memory="sinks=2,window=12")
    return source, export_bundle(source, folder / "bundle", ExportOptions(steps=60))


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    folder = folder_of("llama", tmp_path_factory)
    return folder, export_bundle(load(folder, max_length=24), folder / "bundle")


def test_an_export_is_held_to_the_models_full_sequence_pass(streaming):
    _, bundle = streaming
    report = bundle.manifest.verification
    errors = [report["step_error"], *report["chunk_errors"].values(), *report["far_errors"].values()]
    assert max(errors) <= 1e-4
    assert len(report["chunk_errors"]) == 3
    assert set(report["far_errors"]) == {str(position) for position in FAR_POSITIONS}
    assert bundle.manifest.source.options == LoadOptions(memory="sinks=2,window=12,positions=slot")


def test_a_bundle_streams_past_its_windows_as_the_model_reads_the_whole(streaming):
    source, bundle = streaming
    ids = tokens(100)
    with torch.no_grad():
        expected = source.reference(ids).numpy()
    with edgemem.open(bundle.path, threads=1, device="cpu") as session:
        stream = session.stream(2)
        got = np.concatenate([stream.feed(ids[:, :53].numpy(), outputs="all"), *(
            stream.step(row)[:, None].copy() for row in ids[:, 53:].T.numpy()
        )], axis=1)  # fmt: skip
    assert np.abs((got - expected) / (1 + np.abs(expected))).max() < 1e-4


def test_its_attention_is_one_operator_a_layer_in_the_native_form(streaming):
    graph = ir.load(streaming[1].file(streaming[1].manifest.graphs[0].native)).graph
    operators = [node for node in graph if node.op_type == "MemoryAttention"]
    assert [node.attributes["memories"].as_string() for node in operators] == ["window", "window,sinks"]


def test_rings_are_appended_to_and_never_copied(streaming):
    _, bundle = streaming
    graph = ir.load(bundle.file(bundle.manifest.graphs[0].file)).graph
    for value in graph.inputs:
        if ".window." in value.name:
            assert {node.op_type for node, _ in value.uses()} <= {"MatMul", "Transpose"}
    assert {value.name for value in graph.outputs if ".window." in value.name} == {
        f"append.{layer}.window.{part}" for layer in (0, 1) for part in "kv"
    }


def test_a_maximal_length_is_exact_up_to_it_and_ends_there(ending):
    folder, bundle = ending
    assert bundle.contract.max_position == 24
    assert bundle.manifest.source.options == LoadOptions(max_length=24)
    assert bundle.manifest.verification["far_errors"] == {}
    ids = tokens(24, batch=1)
    with torch.no_grad():
        expected = load_model(folder)(ids, use_cache=False).logits.numpy()
    with edgemem.open(bundle.path, threads=1, device="cpu") as session:
        stream = session.stream()
        got = stream.feed(ids.numpy(), outputs="all")
        assert np.abs((got - expected) / (1 + np.abs(expected))).max() < 1e-4
        with pytest.raises(InputError, match="at position 24: 1 more would pass the 24"):
            stream.step(3)
