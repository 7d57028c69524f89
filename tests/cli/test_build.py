"""``edgemem build`` as a user calls it."""

import importlib.util
import json
import shutil

import pytest

from edgemem.bundle import RECIPE, open_bundle
from edgemem.cli import build_command
from edgemem.errors import EngineError, MissingDependencyError
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.pack import is_pack, read_recipe
from edgemem.runtimes.trt.targets import TARGETS
from tests.handmade import SUMMER, SUMMER_GRAPH, write_graph, write_reciter

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx, the compiler that needs no GPU, is not installed",
)


@pytest.fixture
def bundle(tmp_path):
    return write_reciter(tmp_path / "bundle")


@pytest.fixture
def on_board(monkeypatch):
    """Makes this machine a board by the name that its firmware gives."""
    return lambda name: monkeypatch.setattr(build_command, "board", lambda: name)


@pytest.fixture
def unlovely(tmp_path):
    """A bundle with an operator that no TensorRT knows."""
    graph = SUMMER_GRAPH.replace(": 20]", ": 26]")
    graph = graph.replace("sums = Add(running, past)", "same = CumProd(running, axis)\n    sums = Add(same, past)")
    return write_graph(tmp_path / "unlovely", graph, SUMMER, {})


@needs_compiler
def test_engines_are_written_into_the_bundle(invoke, bundle):
    result = invoke("build", str(bundle), "--target", "rtx", "--max-batch", "2", "--top-k", "3")
    assert result.exit_code == 0, result.output
    assert "built in" in result.stdout
    facts = json.loads((bundle / "engines" / "rtx" / "model.engine.json").read_text())
    assert facts["options"]["max_batch"] == 2
    assert facts["options"]["top_k"] == 3
    assert facts["contract"] == open_bundle(bundle).contract.fingerprint
    assert (bundle / "engines" / "rtx" / "model.plan").stat().st_size == facts["plan_bytes"]


@needs_compiler
def test_scripts_get_one_object(invoke, bundle, tmp_path):
    out = tmp_path / "engines"
    result = invoke("build", str(bundle), "--target", "rtx", "--out", str(out), "--compute-capability", "8.6", "--json")
    facts = json.loads(result.stdout)
    assert facts["built"] == str(out)
    assert facts["linted"] is True
    assert facts["findings"] == []
    assert facts["engines"][0]["compute_capabilities"] == ["8.6"]
    assert not (bundle / "engines").exists()


@needs_compiler
def test_check_only_builds_nothing(invoke, bundle):
    result = invoke("build", str(bundle), "--target", "rtx", "--check-only")
    assert result.exit_code == 0, result.output
    assert "nothing that RTX GPUs from Ampere on cannot take" in result.stdout
    assert "Read without errors by tensorrt_rtx" in result.stdout
    assert not (bundle / "engines").exists()


@needs_compiler
def test_a_folder_that_holds_something_else_is_left_alone(invoke, bundle, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    result = invoke("build", str(bundle), "--target", "rtx", "--out", str(tmp_path / "mine"))
    assert result.exit_code == 1
    assert "it was not changed" in result.stderr
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_board_elsewhere_gets_a_folder_that_builds_there_without_options(invoke, bundle, tmp_path):
    out = tmp_path / "carry"
    result = invoke("build", str(bundle), "--target", "orin-nano", "--max-batch", "4", "--out", str(out))
    assert result.exit_code == 0, result.output
    assert "edgemem build carry" in result.stdout
    assert open_bundle(out / "bundle").fingerprint == open_bundle(bundle).fingerprint
    recipe = read_recipe(out)
    assert recipe.target == "orin-nano"
    assert recipe.options == BuildOptions(max_batch=4, workspace_bytes=TARGETS["orin-nano"].workspace_bytes)


def test_a_packed_folder_is_opened_as_the_bundle_in_it(invoke, bundle, tmp_path):
    out = tmp_path / "carry"
    invoke("build", str(bundle), "--target", "orin-nano", "--out", str(out))
    assert open_bundle(out).fingerprint == open_bundle(bundle).fingerprint
    assert open_bundle(out).path == out / "bundle"
    assert invoke("inspect", str(out)).exit_code == 0
    (out / "recipe.json").unlink()
    assert "has no manifest.json" in invoke("inspect", str(out)).stderr, "any other folder is not searched"


def test_a_packed_folder_is_not_packed_again_where_the_board_is_not(invoke, bundle, tmp_path):
    out = tmp_path / "carry"
    invoke("build", str(bundle), "--target", "orin-nano", "--out", str(out))
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    result = invoke("build", str(out))
    assert result.exit_code == 1
    assert "is packed for Jetson Orin Nano, and this machine is none." in result.stderr
    assert "edgemem build carry" in result.stderr
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_engines_of_this_machine_are_not_packed(invoke, bundle, tmp_path):
    (bundle / "engines" / "local").mkdir(parents=True)
    (bundle / "engines" / "local" / "model.plan").write_bytes(b"plan")
    invoke("build", str(bundle), "--target", "thor", "--out", str(tmp_path / "carry"))
    assert not (tmp_path / "carry" / "bundle" / "engines").exists()


def test_packing_again_replaces_the_folder_and_nothing_else(invoke, bundle, tmp_path):
    out = tmp_path / "carry"
    for batch in ("1", "2"):
        assert invoke("build", str(bundle), "--target", "thor", "--max-batch", batch, "--out", str(out)).exit_code == 0
    assert read_recipe(out).options.max_batch == 2
    result = invoke("build", str(bundle), "--target", "thor", "--out", str(bundle))
    assert result.exit_code == 1
    assert "it was not changed" in result.stderr


def test_a_packed_folder_is_built_on_the_board_by_its_recipe(invoke, bundle, tmp_path, on_board, monkeypatch):
    out = tmp_path / "carry"
    invoke("build", str(bundle), "--target", "orin-nx", "--top-k", "2", "--out", str(out))
    asked = {}

    def load(name):
        asked["flavour"] = name
        raise EngineError("here TensorRT would start")

    monkeypatch.setattr(build_command, "load_flavour", load)
    on_board("NVIDIA Jetson Orin NX Engineering Reference Developer Kit")
    result = invoke("build", str(out))
    assert asked == {"flavour": "tensorrt"}
    assert "here TensorRT would start" in result.stderr


def test_a_board_does_not_build_for_another(invoke, bundle, on_board):
    on_board("NVIDIA Jetson Orin Nano Developer Kit")
    result = invoke("build", str(bundle), "--target", "orin-agx")
    assert result.exit_code == 1
    assert "the target is Jetson AGX Orin, this machine is NVIDIA Jetson Orin Nano" in result.stderr


def test_what_a_target_cannot_take_is_refused_by_node_before_anything_is_built(invoke, unlovely, tmp_path):
    for options in (("--check-only",), ("--out", str(tmp_path / "carry"))):
        result = invoke("build", str(unlovely), "--target", "orin-agx", *options)
        assert result.exit_code == 1
        assert "CumProd" in result.stderr
        assert "triangular MatMul" in result.stderr
    assert not (tmp_path / "carry").exists()


def test_check_only_gives_scripts_every_finding(invoke, unlovely):
    result = invoke("build", str(unlovely), "--target", "orin-agx", "--check-only", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)["findings"]
    assert {"operator", "opset", "cumulative-sum"} <= {finding["rule"] for finding in found}
    assert all(finding["where"] and finding["way_out"] for finding in found)


def test_without_the_packages_that_read_onnx_the_check_is_skipped_with_a_note(invoke, bundle, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "onnx_ir" else find(name, *a))
    result = invoke("build", str(bundle), "--target", "thor", "--out", str(tmp_path / "carry"))
    assert result.exit_code == 0, result.output
    assert "the nodes were not checked: onnx_ir not installed" in result.stderr
    result = invoke("build", str(bundle), "--target", "thor", "--check-only")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit | MissingDependencyError)
    assert "--check-only needs onnx_ir" in result.stderr


@pytest.mark.parametrize(
    "options",
    [("--target", "nano"), ("--max-batch", "0"), ("--top-k", "4000"), ("--workspace", "0")],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(invoke, bundle, options):
    assert invoke("build", str(bundle), *options).exit_code == 2


def test_compute_capabilities_are_for_portable_engines(invoke, bundle):
    result = invoke("build", str(bundle), "--target", "thor", "--compute-capability", "8.6")
    assert result.exit_code == 1
    assert "is for --target rtx" in result.stderr


@pytest.mark.parametrize("damage", ["", "{", '{"format": "edgemem.recipe", "version": 9, "target": "thor"}'])
def test_a_damaged_recipe_is_an_error(invoke, bundle, tmp_path, damage):
    out = tmp_path / "carry"
    invoke("build", str(bundle), "--target", "thor", "--out", str(out))
    assert is_pack(out)
    (out / RECIPE).write_text(damage)
    result = invoke("build", str(out))
    assert result.exit_code == 1
    assert "recipe.json" in result.stderr or "is not a bundle" in result.stderr


def test_a_bundle_that_was_cut_short_on_the_way_is_refused(invoke, bundle, tmp_path):
    out = tmp_path / "carry"
    invoke("build", str(bundle), "--target", "thor", "--out", str(out))
    graph = out / "bundle" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-5])
    result = invoke("build", str(out))
    assert result.exit_code == 1
    assert "cut short" in result.stderr
    shutil.rmtree(out)
