"""Bundles in reduced precision: small, the same model, checked against float32, and refused where they cannot run."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

import edgemem
from edgemem.bundle import open_bundle
from edgemem.errors import BundleError, ExportError, RuntimeUnavailableError, VerificationError
from edgemem.export import ExportOptions, check, export_bundle, from_config, source_of
from edgemem.export.verify.counters import check_counters
from edgemem.export.verify.far import FAR_POSITIONS
from edgemem.manifest import MANIFEST_FORMAT
from edgemem.measure import change_tolerance, rounding_tolerance
from edgemem.memories import Clock
from edgemem.precision import Precision
from edgemem.runtimes.ort.engine import OrtSession
from edgemem.versioned import Fields
from tests.export.conftest import HYBRID, SMALL, lively
from tests.shared import shared_bundle

OPTIONS = {
    "int4": {"weights": "int4"},
    "fp16": {"dtype": "fp16"},
    "bf16 int8": {"dtype": "bf16", "weights": "int8", "block_size": 16},
}
TOKENS = np.random.default_rng(0).integers(0, 256, 40)


@pytest.fixture(scope="session")
def bundle_in(hybrid, tmp_path_factory):
    """Gives the checked bundle of the hybrid model in a precision."""

    def get(name):
        options = ExportOptions(**OPTIONS[name])
        return shared_bundle(tmp_path_factory, f"hybrid {name}", lambda out: export_bundle(hybrid, out, options))

    return get


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.long] * (name == "bf16 int8")) for name in OPTIONS])
def reduced(request, bundle_in):
    return bundle_in(request.param)


@pytest.fixture
def int4_bundle(bundle_in):
    return bundle_in("int4")


def test_each_precision_is_held_to_its_own_weights_and_to_the_float32_model(reduced):
    report, precision = reduced.manifest.verification, reduced.manifest.precision
    assert report["tolerance"] == rounding_tolerance(precision)
    assert report["change_tolerance"] == change_tolerance(precision)
    assert set(report["far_errors"]) == {str(position) for position in FAR_POSITIONS}
    errors = [report["step_error"], *report["chunk_errors"].values(), *report["far_errors"].values()]
    assert all(error <= report["tolerance"] for error in errors)
    assert 0 < report["change"] <= report["change_tolerance"]
    assert report["emulated"] is (precision.dtype == "bfloat16")


def test_the_graph_is_valid_and_of_the_opset_that_it_needs(reduced):
    path = reduced.file("model.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path, load_external_data=False)
    assert [entry.version for entry in model.opset_import] == [21 if reduced.manifest.precision.weights else 20]


def test_rings_and_sinks_are_in_half_precision_and_summaries_logits_and_norms_in_float32(reduced):
    half = reduced.manifest.precision.dtype
    dtypes = {state.name: state.dtype for state in reduced.contract}
    assert {dtypes[name] for name in ("0.window.k", "1.window.v", "0.sinks.k")} == {half}
    assert {dtypes[n] for n in ("0.cumulative.mean", "0.cumulative.carry", "1.gated_delta.matrix")} == {"float32"}
    assert reduced.contract.output.dtype == "float32"
    typed = onnx.shape_inference.infer_shapes(
        onnx.load(reduced.file("model.onnx"), load_external_data=False), strict_mode=True
    )
    types = {v.name: v.type.tensor_type.elem_type for v in (*typed.graph.value_info, *typed.graph.output)}
    islands = [n for n in typed.graph.node if n.op_type in ("Softmax", "Sqrt", "ReduceMean", "Cos", "Exp")]
    assert islands
    assert {types[node.output[0]] for node in islands} == {onnx.TensorProto.FLOAT}


def test_the_torch_runtime_rebuilds_it_from_the_bundle(reduced, hybrid):
    with edgemem.open(reduced.path, "torch") as session:
        got = session.stream().feed(TOKENS, outputs="all")[0]
    with torch.inference_mode():
        wanted = hybrid.module(torch.from_numpy(TOKENS)[None])[0][0].numpy()
    assert got.dtype == np.float32
    tolerance = change_tolerance(reduced.manifest.precision)
    assert 0 < np.sqrt(np.mean((got - wanted) ** 2)) / wanted.std() <= tolerance


def test_a_bundle_passes_its_check_again_without_its_source(reduced):
    report = check(reduced.path, source_of(open_bundle(reduced.path)), steps=20, is_original=False)
    assert report.change is None
    assert report.step_error <= report.tolerance


def test_a_change_that_is_too_large_is_refused_or_marked_as_unverified(int4_bundle, hybrid):
    other = lively(from_config(HYBRID, "another"))
    lively(other)
    with pytest.raises(VerificationError, match=r"more than this precision allows \(0\.30\)"):
        check(int4_bundle.path, other, steps=10)
    report = check(int4_bundle.path, other, steps=10, allow_change=True)
    assert report.change > report.change_tolerance
    assert report.unverified.startswith("the outputs differ from the float32 model's by")


def test_four_bits_take_an_eighth_of_the_bytes_and_the_scales_another(int4_bundle, hybrid):
    matrices = int4_bundle.manifest.precision.matrices
    assert set(matrices) == {
        "head",
        *(f"layers.{layer}.{part}" for layer in (0, 1) for part in ("attention.qkv", "attention.out")),
        *(f"layers.{layer}.mlp.{part}" for layer in (0, 1) for part in ("gate_up", "down")),
    }
    parameters = dict(hybrid.module.state_dict())
    parameters["head"] = parameters["embedding"]
    elements = sum(parameters[name].numel() for name in matrices)
    quantised = elements // 2 + elements // 32 * 4
    table = parameters["embedding"].numel() * 2
    rest = sum(4 * p.numel() for name, p in parameters.items() if name not in (*matrices, "embedding"))
    assert int4_bundle.weights_bytes <= quantised + table + rest + 8192


def test_int4_streams_in_the_fast_kernels_near_the_exact_ones(int4_bundle):
    with OrtSession(int4_bundle, device="cpu", threads=1) as fast:
        quick = fast.stream().feed(TOKENS, outputs="all")
    with OrtSession(int4_bundle, device="cpu", threads=1, exact=True) as exact:
        slow = exact.stream().feed(TOKENS, outputs="all")
    with edgemem.open(int4_bundle.path, "torch", threads=1) as reference:
        wanted = reference.stream().feed(TOKENS, outputs="all")
    np.testing.assert_allclose(slow, wanted, atol=1e-4, rtol=1e-4)
    assert 0 < np.sqrt(np.mean((quick - slow) ** 2)) < 0.03 * slow.std()


def test_a_tampered_scale_is_found(int4_bundle, hybrid, tmp_path):
    from tests.export.test_check import damaged

    def widen(model):
        for node in model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[1] == "layers.1.mlp.down.scale":
                node.input[1] = "layers.0.mlp.down.scale"

    folder = damaged(int4_bundle, tmp_path / "tampered", widen)
    with pytest.raises(VerificationError, match=r"logits at step \d+ differs"):
        check(folder, hybrid)


@pytest.mark.long
def test_bfloat16_is_refused_by_the_cpu_with_the_way_out(bundle_in):
    with pytest.raises(RuntimeUnavailableError, match="cannot compute in bfloat16") as caught:
        edgemem.open(bundle_in("bf16 int8").path, "onnxruntime", device="cpu")
    assert "--dtype fp16" in str(caught.value)


def test_a_counter_in_half_precision_fails_the_export(tmp_path, monkeypatch):
    monkeypatch.setattr(Clock, "counts", lambda clock: (clock.positions + 1).half().float()[:, None, :, None])
    with pytest.raises(VerificationError, match="casts a position to float16, which counts to 2,048"):
        export_bundle(from_config(SMALL, "small"), tmp_path / "bundle", ExportOptions(dtype="fp16"))
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_of_positions_may_be_in_half_precision():
    import onnx_ir as ir
    from onnx import TensorProto, helper

    def graph(*nodes):
        inputs = [helper.make_tensor_value_info("position", TensorProto.INT64, ["b"])]
        outputs = [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["b"])]
        made = helper.make_graph(list(nodes), "g", inputs, outputs)
        return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]))

    add = helper.make_node("Add", ["position", "position"], ["twice"])
    less = helper.make_node("Less", ["position", "twice"], ["b"])
    check_counters(graph(add, less, helper.make_node("Cast", ["b"], ["y"], to=TensorProto.BFLOAT16)), "g")
    with pytest.raises(VerificationError, match="casts a position to bfloat16, which counts to 256"):
        check_counters(graph(add, helper.make_node("Cast", ["twice"], ["y"], to=TensorProto.BFLOAT16)), "g")


def test_a_position_is_followed_into_a_loop_and_not_through_what_it_is_an_index_of():
    import onnx
    import onnx_ir as ir

    def graph(picked):
        return ir.from_proto(
            onnx.parser.parse_model(
                f"""
                <ir_version: 10, opset_import: ["" : 20]>
                g (int64[1] position, float[1,4] table, float[3,1] x) => (int64[1] last, float16[3,1] y) {{
                  last, y = Scan <num_scan_inputs = 1, body = body (int64[1] at, float[1] part)
                    => (int64[1] next, float16[1] out) {{
                      next = Add (at, at)
                      found = Gather <axis = 1> (table, at)
                      flat = Squeeze (found)
                      out = Cast <to = 10> ({picked})
                  }}> (position, x)
                }}
                """
            )
        )

    check_counters(graph("flat"), "g")
    with pytest.raises(VerificationError, match="casts a position to float16"):
        check_counters(graph("next"), "g")


def test_a_module_with_nothing_to_halve_is_refused(gru, tmp_path):
    with pytest.raises(ExportError, match="no large matrix"):
        export_bundle(gru, tmp_path / "bundle", ExportOptions(dtype="fp16"))
    assert list(tmp_path.iterdir()) == []


def test_precision_is_in_the_manifest_and_in_words(int4_bundle):
    data = json.loads((int4_bundle.path / "manifest.json").read_text())
    assert data["precision"] == int4_bundle.manifest.precision.to_json()
    assert data["model"]["tie_embeddings"] is False, "the head has its own matrix now"
    words = str(int4_bundle.manifest.precision)
    assert words == "float32, 9 matrices as int4 in blocks of 32; looked up, in 16 bits: embedding"
    assert str(Precision()) == "float32"
    assert str(Precision("bfloat16")) == "bfloat16"


def read_precision(data):
    return Precision.from_json(Fields(data, "manifest.json: precision", MANIFEST_FORMAT))


@pytest.mark.parametrize("wrong", [{"dtype": "float8"}, {"weights": "int2"}, {"matrices": None}, {"left": 3}])
def test_a_malformed_precision_in_a_manifest_is_refused(wrong):
    with pytest.raises(BundleError, match=f"precision is malformed: {next(iter(wrong))} is"):
        read_precision(Precision().to_json() | wrong)


@pytest.mark.parametrize("precision", [Precision(), Precision("float16", "int8", 64, ("a", "b"), left={"c": "small"})])
def test_a_precision_survives_json(precision):
    assert read_precision(json.loads(json.dumps(precision.to_json()))) == precision
    assert read_precision({}) == Precision(), "the first bundles stored no precision: they are float32"
