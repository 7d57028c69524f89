"""An export that loses state, or numbers, fails: each way of losing them, by name."""

from __future__ import annotations

import json
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgemem.bundle import open_bundle, write_bundle
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import ExportError, VerificationError
from edgemem.export import check, export_bundle, from_config, load_source
from edgemem.export.verify.expected import compared_steps
from edgemem.export.verify.far import FAR_POSITIONS
from tests.export.conftest import HYBRID, SMALL, lively


@pytest.mark.parametrize("name", ["Gru", "Lstm", "RingSum"])
def test_modules_that_carry_their_state_pass(name, tmp_path):
    bundle = export_bundle(load_source(f"tests.export.modules:{name}"), tmp_path / name)
    report = bundle.manifest.verification
    assert report["step_error"] < 1e-5
    assert report["chunk_errors"]


def test_the_report_covers_stepping_chunks_and_far_positions(hybrid_bundle):
    report = hybrid_bundle.manifest.verification
    assert report["steps"] > 2 * 8, "past the longest window's wrap"
    assert set(report["chunk_errors"]) == {"chunks of 5", "chunks of 3", "mixed chunks of 1 to 5"}
    assert set(report["far_errors"]) == {str(position) for position in FAR_POSITIONS}
    errors = [report["step_error"], *report["chunk_errors"].values(), *report["far_errors"].values()]
    assert all(0 <= error <= report["tolerance"] for error in errors)


@given(steps=st.integers(4, 5_000), width=st.integers(1, 200_000), batch=st.integers(1, 4))
def test_all_outputs_are_compared_or_as_many_as_memory_holds(steps, width, batch):
    contract = Contract(
        (InputSpec("features", (1,)),), (OutputSpec("sums", (width,)),), (StateSpec("s", (1,)),), max_chunk=8
    )
    compared = compared_steps(contract, batch, steps)
    assert compared[0] == 0
    assert compared[-1] == steps - 1
    assert (np.diff(compared) > 0).all()
    fits = 256 * 2**20 // (4 * width * batch)
    assert compared.size == min(steps, max(fits, 64))


@pytest.mark.long
def test_outputs_that_are_too_many_are_compared_at_some_steps(hybrid, hybrid_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[compared_steps.__module__], "_COMPARED_BYTES", 1)
    report = check(hybrid_bundle.path, hybrid, steps=150)
    assert (report.steps, report.compared) == (150, 64)
    assert 0 < report.step_error <= report.tolerance
    with pytest.raises(VerificationError, match="logits at step 0 differs"):
        check(hybrid_bundle.path, lively(lively(load_config(hybrid_bundle))), steps=150)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("KeepsStateAsAttribute", "nothing reads past.0.gru.h: the model ignores its past"),
        ("NeverChangesState", "'0.gru.h' still has its initial value after 258 steps"),
        ("IgnoresOneState", "'0.gru.count' has no effect"),
        ("BakesInPosition", "BakesInPosition itself keeps calls, which changed"),
        ("FloatCounter", "at position 16777215"),
        ("BranchesOnData", "torch cannot export BranchesOnData"),
        ("FixesTime", "time"),
    ],
)
def test_each_way_to_lose_state_or_numbers_fails_the_export(name, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_bundle(load_source(f"tests.export.modules:{name}"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def damaged(bundle, folder, change):
    """A copy of a bundle whose graph ``change`` has edited, with an honest manifest."""
    with write_bundle(folder) as writer:
        for name in bundle.manifest.files:
            shutil.copy(bundle.file(name), writer.folder / name)
        path = writer.folder / "model.onnx"
        model = onnx.load(path, load_external_data=False)
        change(model)
        path.write_bytes(model.SerializeToString())
        writer.finish(bundle.manifest)
    return folder


def test_a_state_swapped_with_another_is_found(hybrid, hybrid_bundle, tmp_path):
    def swap(model):
        for node in model.graph.node:
            names = ["past.0.window.k", "past.0.window.v"]
            for index, name in enumerate(node.input):
                if name in names:
                    node.input[index] = names[1 - names.index(name)]

    with pytest.raises(VerificationError, match="logits at step 1 differs"):
        check(damaged(hybrid_bundle, tmp_path / "swapped", swap), hybrid)


def test_the_first_step_and_tensor_that_diverge_are_named(hybrid, hybrid_bundle, tmp_path):
    """The second layer's window gets a wrong value: the first layer's states agree, the second's do not."""

    def scale_entries(model):
        graph = model.graph
        for node in graph.node:
            for index, name in enumerate(node.output):
                if name == "append.1.window.v":
                    node.output[index] = "entries"
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.5), "factor"))
        graph.node.append(onnx.helper.make_node("Mul", ["entries", "factor"], ["append.1.window.v"]))
        for node in graph.node:
            if "append.1.window.v" in node.input:
                node.input[list(node.input).index("append.1.window.v")] = "entries"

    with pytest.raises(
        VerificationError, match=r"at step 1 differs .* the first tensor to differ is 1\.window\.v after step 0"
    ):
        check(damaged(hybrid_bundle, tmp_path / "scaled", scale_entries), hybrid)


def test_a_bundle_checked_against_other_weights_fails(hybrid_bundle):
    other = lively(lively(load_config(hybrid_bundle)))
    with pytest.raises(VerificationError, match="logits at step 0 differs"):
        check(hybrid_bundle.path, other)


def test_a_bundle_checked_against_another_model_is_refused(hybrid_bundle):
    with pytest.raises(VerificationError, match="has other states"):
        check(hybrid_bundle.path, load_source("tests.export.modules:Gru"))


def test_nan_weights_do_not_pass(tmp_path):
    broken = from_config(SMALL, "broken")
    with torch.no_grad():
        next(broken.module.parameters()).fill_(float("nan"))
    with pytest.raises(VerificationError):
        export_bundle(broken, tmp_path / "nan")


def load_config(bundle):
    assert json.loads((bundle.path / "manifest.json").read_text())["model"]["d_model"] == HYBRID.d_model
    return from_config(HYBRID, "again")


def test_a_sealed_bundle_is_checked_against_the_same_source(hybrid, sealed_bundle):
    report = check(sealed_bundle.path, hybrid, steps=25)
    assert report.steps == 25
    assert report.graph_states == len(open_bundle(sealed_bundle.path).contract.states)
    assert set(report.far_errors) == {str(position) for position in FAR_POSITIONS}
