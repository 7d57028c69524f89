"""An older bundle becomes one of today, and computes what it computed."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import edgemem
from edgemem.bundle import BundleWriter, open_bundle
from edgemem.errors import EdgememError, VerificationError
from edgemem.export import upgrade
from edgemem.manifest import MANIFEST_FORMAT
from edgemem.runtimes import native
from edgemem.runtimes.ort.engine import OrtSession
from tests.runtimes import tiny

OLD = Path(__file__).parents[1] / "data" / "version1"
needs_operators = pytest.mark.skipif(native.library() is None, reason=native.why())


@pytest.fixture
def old(tmp_path):
    return Path(shutil.copytree(OLD / "tokens", tmp_path / "old"))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@needs_operators
def test_a_bundle_of_version_1_is_replaced_by_one_of_today(old, invoke):
    result = invoke("upgrade", old, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    bundle = open_bundle(old)
    assert found["version"] == 1
    assert bundle.digest is not None
    assert json.loads((old / "manifest.json").read_text())["version"] == MANIFEST_FORMAT.versions[-1]
    assert bundle.contract.to_json()["version"] == 2
    assert found["operators"]["NormMatMul"] > 0
    recorded = np.load(OLD / "tokens.npz")
    for native_form in (False, True):
        with OrtSession(open_bundle(old), device="cpu", native=native_form) as session:
            assert session.engine.form.startswith("native") == native_form
            got = session.stream(batch=2).feed(recorded["data"], "all")
        np.testing.assert_allclose(got, recorded["outputs"], rtol=0, atol=1e-5)


@needs_operators
def test_another_folder_leaves_the_old_bundle_as_it_was(old, tmp_path, invoke):
    before = contents(old)
    result = invoke("upgrade", old, "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert "version 1 → 3" in result.output
    assert "Its attention stays in standard operators" in result.output
    assert "do not resume" in result.output
    assert contents(old) == before
    assert (tmp_path / "new" / "weights.safetensors").read_bytes() == before["weights.safetensors"]


def test_where_only_the_native_form_is_new_snapshots_resume(tmp_path):
    path = tiny.save_bundle(tmp_path / "tokens", tiny.TOKENS, tiny.tokens_model()).path
    with edgemem.open(path, device="cpu") as session:
        stream = session.stream()
        stream.feed([1, 2, 3])
        snapshot, wanted = stream.snapshot(), stream.step(4).copy()
    done = upgrade(path)
    assert done.keeps_snapshots
    with edgemem.open(path, device="cpu") as session:
        stream = session.stream()
        stream.restore(snapshot)
        np.testing.assert_allclose(stream.step(4), wanted, rtol=1e-5, atol=1e-6)


def test_what_is_up_to_date_is_not_written(old, invoke):
    upgrade(old)
    before = {file.name: file.stat().st_mtime_ns for file in old.iterdir()}
    result = invoke("upgrade", old)
    assert result.exit_code == 0, result.output
    assert "is up to date" in result.output
    assert {file.name: file.stat().st_mtime_ns for file in old.iterdir()} == before


@needs_operators
def test_a_native_form_that_no_longer_loads_is_made_again(old):
    manifest = upgrade(old).bundle.manifest
    model = onnx.load(old / "native.model.onnx", load_external_data=False)
    for node in model.graph.node:
        node.op_type = node.op_type.replace("NormMatMul", "NormOfOld")
    onnx.save(model, old / "native.model.onnx")
    BundleWriter(old).finish(manifest)
    with edgemem.open(old, "onnxruntime", device="cpu") as session:
        assert session.engine.form.startswith("standard operators: ")
    assert upgrade(old).operators["NormMatMul"] > 0
    with edgemem.open(old, "onnxruntime", device="cpu") as session:
        assert session.engine.form.startswith("native operators")


@needs_operators
def test_a_form_that_computes_something_else_leaves_the_bundle_as_it_was(old, monkeypatch):
    module = importlib.import_module("edgemem.export.upgrade")
    made = module.native_form

    def wrong(model):
        form = made(model)
        for node in form.graph:
            if "eps" in node.attributes:
                node.attributes["eps"] = ir.AttrFloat32("eps", 0.5)
        return form

    monkeypatch.setattr(module, "native_form", wrong)
    before = contents(old)
    with pytest.raises(VerificationError, match="differs by"):
        upgrade(old)
    assert contents(old) == before


def test_what_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(EdgememError, match="is not a bundle"):
        upgrade(tmp_path / "nothing")
