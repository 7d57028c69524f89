"""Every rule refuses its construct, in the words of the lint and by NVIDIA's own compiler."""

import importlib.util
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemem.bundle import open_bundle
from edgemem.errors import EngineError, ExportError
from edgemem.export.targets.lint import lint, lint_graph, lint_model, notes, refuse_errors
from edgemem.export.targets.rules import RULES
from edgemem.runtimes.trt.flavour import Cuda, Flavour
from edgemem.runtimes.trt.targets import (
    JETSONS,
    RTX,
    TARGETS,
    element_types,
    max_opset,
    missing_operators,
    narrowed,
    of_flavour,
)
from tests.handmade import SUMMER, SUMMER_GRAPH, write_graph

NO_COMPILER = importlib.util.find_spec("tensorrt_rtx") is None
TURING = narrowed(RTX, ("7.5",))
ORIN = TARGETS["orin-nano"]


def parsed(body, opset=20, domains=""):
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> {body}')


def dequantised(dtype, zero_point=None, block=16, rows=32, columns=16):
    """``x @ dequantised weights``, blockwise, as the exporter writes it."""
    blocks = rows // block
    initializers = [
        helper.make_tensor("w", dtype, [rows, columns], [1] * (rows * columns)),
        numpy_helper.from_array(np.ones((blocks, columns), np.float32), "scale"),
    ]
    inputs = ["w", "scale"]
    if zero_point is not None:
        initializers.append(helper.make_tensor("zero", dtype, [blocks, columns], [zero_point] * (blocks * columns)))
        inputs.append("zero")
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["d"], name="dequantise", axis=0, block_size=block),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, [1, size]) for name, size in (("x", rows), ("y", columns)))
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


LOOP = """g (float[2] x, int64 n) => (float[2] y) <bool yes = {{1}}> {{
    y = Loop(n, {condition}, x) <body = b (int64 i, bool c, float[2] a) => (bool d, float[2] e)
        {{ d = Identity(c) e = Add(a, a) }}> }}"""
SCATTER = """g (float[4, 3] x, float[2, 3] u, int64[2, 1] i) => (float[4, 3] y)
    {{ y = ScatterND <reduction = "{reduction}"> (x, i, u) }}"""
ATTENTION = """g ({dtype}[1, 2, 3, 8] q, {dtype}[1, 2, 3, 8] k, {dtype}[1, 2, 3, 8] v{more})
    => ({dtype}[1, 2, 3, 8] y{outputs}) {{ y{names} = Attention (q, k, v{inputs}) }}"""
PAST = {
    "more": ", float16[1, 2, 4, 8] pk, float16[1, 2, 4, 8] pv",
    "outputs": ", float16[1, 2, 7, 8] nk, float16[1, 2, 7, 8] nv",
    "names": ", nk, nv",
    "inputs": ", , pk, pv",
}
PLAIN = {"more": "", "outputs": "", "names": "", "inputs": ""}
TENSOR_SCATTER = """g (float[1, {heads}8, 4] c, float[1, {heads}1, 4] u, int64[1] i) => (float[1, {heads}8, 4] y)
    {{ y = TensorScatter <mode = "{mode}"> (c, u, i) }}"""
TOP_K = """g (float[1, 5000] x) => (float[1, {k}] y, int64[1, {k}] i) <int64[1] k = {{{k}}}> {{ y, i = TopK(x, k) }}"""
CAST = "g (float[2, 4] x) => (float[2, 4] y) {{ a = Cast <to = {to}> (x) b = Mul(a, a) y = Cast <to = 1> (b) }}"
ONE_OP = "g (float[2, 3] x) => (float[2, 3] y) { y = Add(x, x) }"

# Name: the rule, the model, and the target where it is not TensorRT-RTX for all its GPUs.
REFUSED = {
    "an operator that the parser does not know": (
        "operator",
        parsed("g (uint8[2, 3] x, int8[3, 2] w) => (int32[2, 2] y) { y = MatMulInteger(x, w) }"),
    ),
    "quantised activations": (
        "operator",
        parsed("g (float[2, 3] x) => (uint8[2, 3] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }"),
    ),
    "an operator of ONNX Runtime's own": (
        "domain",
        parsed(
            "g (float[1, 32] x, uint8[8, 1, 16] w, float[8] s) => (float[1, 8] y)"
            "{ y = com.microsoft.MatMulNBits <K = 32, N = 8, bits = 4, block_size = 32> (x, w, s) }",
            domains=', "com.microsoft" : 1',
        ),
    ),
    "a type that no GPU has": ("element-type", parsed("g (int16[2, 3] x) => (int16[2, 3] y) { y = Add(x, x) }")),
    "bfloat16 before Ampere": ("element-type", parsed(CAST.format(to=16)), TURING),
    "int4 weights before Ampere": ("element-type", dequantised(TensorProto.INT4), TURING),
    "int8 weights times float32 before Ampere": ("product-type", dequantised(TensorProto.INT8), TURING),
    "float8 before Ada": (
        "element-type",
        dequantised(TensorProto.FLOAT8E4M3FN, block=32),
        narrowed(RTX, ("8.6",)),
    ),
    "the other float8": ("element-type", dequantised(TensorProto.FLOAT8E5M2, block=32)),
    "bytes that are computed with": ("uint8", parsed("g (uint8[2, 3] x) => (uint8[2, 3] y) { y = Add(x, x) }")),
    "two types in one operation": (
        "mixed-types",
        parsed("g (float16[2, 3] x, float[2, 3] z) => (float[2, 3] y) { y = Add(x, z) }"),
    ),
    "int4 with a zero point": ("zero-point", dequantised(TensorProto.INT4, zero_point=1)),
    "int8 with a zero point": ("zero-point", dequantised(TensorProto.INT8, zero_point=1)),
    "uint4 weights": ("weight-type", dequantised(TensorProto.UINT4)),
    "a scatter that adds": ("scatter-reduction", parsed(SCATTER.format(reduction="add"))),
    "a loop without a condition": ("loop-condition", parsed(LOOP.format(condition=""))),
    "attention in float32": ("attention", parsed(ATTENTION.format(dtype="float", **PLAIN), 23)),
    "attention that carries a past": ("attention", parsed(ATTENTION.format(dtype="float16", **PAST), 23)),
    "attention with a length that is ignored": (
        "attention",
        parsed(ATTENTION.format(dtype="float16", **{**PLAIN, "more": ", int64[1] n", "inputs": ", , , , n"}), 24),
    ),
    "a ring written by TensorScatter": (
        "tensor-scatter",
        parsed(TENSOR_SCATTER.format(mode="circular", heads="2, "), 24),
    ),
    "a cache of three axes": ("tensor-scatter", parsed(TENSOR_SCATTER.format(mode="linear", heads=""), 24)),
    "too many to pick": ("top-k", parsed(TOP_K.format(k=3841))),
    "an input that nothing reads": (
        "unused-input",
        parsed("g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y) { y = Add(x, x) }"),
    ),
    "one name for an input and an output": (
        "shared-name",
        parsed("g (float[2, 3] x, float[2, 3] z) => (float[2, 3] y, float[2, 3] z) { y = Add(x, z) }"),
    ),
}
# What compiles all the same: TensorRT only warns, or renames.
COMPILES = {"an input that nothing reads": "Unused Input: z", "one name for an input and an output": ""}

WARNED = {
    "float64": ("float64", parsed(CAST.format(to=11)), RTX),
    "a loop": ("control-flow", parsed(LOOP.format(condition="yes")), RTX),
    "a fused operator": ("fused-attention", parsed(ATTENTION.format(dtype="float16", **PLAIN), 23), RTX),
    "a cumulative sum on an old TensorRT": (
        "cumulative-sum",
        parsed("g (float[2, 3] x) => (float[2, 3] y) <int64 axis = {1}> { y = CumSum(x, axis) }"),
        ORIN,
    ),
    "float32 weights on a board": (
        "precision",
        helper.make_model(
            helper.make_graph(
                [helper.make_node("MatMul", ["x", "w"], ["y"])],
                "g",
                [helper.make_tensor_value_info("x", 1, [1, 512])],
                [helper.make_tensor_value_info("y", 1, [1, 512])],
                [numpy_helper.from_array(np.ones((512, 512), np.float32), "w")],
            ),
            opset_imports=[helper.make_opsetid("", 20)],
        ),
        ORIN,
    ),
}

TAKEN = {
    "int8 blocks": dequantised(TensorProto.INT8),
    "int4 blocks": dequantised(TensorProto.INT4),
    "int4 with zeros for zero points": dequantised(TensorProto.INT4, zero_point=0),
    "float8": dequantised(TensorProto.FLOAT8E4M3FN, block=32),
    "half precision": parsed(CAST.format(to=10)),
    "bfloat16": parsed(CAST.format(to=16)),
    "a scatter": parsed(SCATTER.format(reduction="none")),
    "as many to pick as there may be": parsed(TOP_K.format(k=3840)),
    "a linear cache": parsed(TENSOR_SCATTER.format(mode="linear", heads="2, "), 24),
}


def findings(model, target=RTX):
    return lint_model(ir.serde.deserialize_model(model), target)


def errors(found):
    return [finding for finding in found if finding.level == "error"]


def compiled(model, target=RTX):
    """Whether TensorRT-RTX compiles a model of fixed shapes, and what it warned of."""
    import tensorrt_rtx as trt

    from edgemem.runtimes.trt.builder import _set_compute_capabilities
    from edgemem.runtimes.trt.flavour import BuildLog

    log, flavour = BuildLog(), Flavour("tensorrt_rtx", trt, trt.__version__, Cuda("none"))
    logger = flavour.logger(log)
    builder = flavour.builder(logger)
    network = builder.create_network(flavour.network_flags())
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return False, log.warnings
    config = builder.create_builder_config()
    if target.compute_capabilities:
        _set_compute_capabilities(flavour, config, target.compute_capabilities)
    return builder.build_serialized_network(network, config) is not None, log.warnings


def test_every_rule_has_a_construct_that_it_finds():
    tried = {rule for rule, *_ in (*REFUSED.values(), *WARNED.values())}
    assert {rule.name for rule in RULES} - tried == {"opset"}  # shown below: no opset is too new for TensorRT-RTX


@pytest.mark.parametrize("what", REFUSED)
def test_the_lint_refuses(what):
    rule, model, target = (*REFUSED[what], RTX)[:3]
    found = errors(findings(model, target))
    assert rule in {finding.rule for finding in found}
    assert all(finding.where and finding.way_out for finding in found)
    with pytest.raises(EngineError, match="cannot take this bundle"):
        refuse_errors(found, target)


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.skipif(NO_COMPILER, reason="tensorrt_rtx, the compiler that needs no GPU, is not installed")
def test_and_so_does_the_compiler(what):
    _, model, target = (*REFUSED[what], RTX)[:3]
    works, warnings = compiled(model, target)
    assert works == (what in COMPILES)
    assert COMPILES.get(what, "") in " ".join(warnings)


@pytest.mark.parametrize("what", WARNED)
def test_the_lint_warns_of(what):
    rule, model, target = WARNED[what]
    found = findings(model, target)
    assert rule in {finding.rule for finding in found}
    assert errors(found) == []
    assert all(finding.way_out for finding in found)
    refuse_errors(found, target)


@pytest.mark.parametrize("what", TAKEN)
@pytest.mark.skipif(NO_COMPILER, reason="tensorrt_rtx, the compiler that needs no GPU, is not installed")
def test_the_lint_and_the_compiler_both_take(what):
    assert errors(findings(TAKEN[what])) == []
    assert compiled(TAKEN[what])[0]


@pytest.mark.skipif(NO_COMPILER, reason="tensorrt_rtx, the compiler that needs no GPU, is not installed")
def test_every_operator_listed_as_missing_is_missing():
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert [name for name in RTX.missing_operators if parser.supports_operator(name)] == []
    assert parser.supports_operator("MatMul")


def test_an_opset_newer_than_the_parser_is_refused():
    assert {finding.rule for finding in errors(findings(parsed(ONE_OP, 23), ORIN))} == {"opset"}
    assert findings(parsed(ONE_OP, 21), ORIN) == []
    assert findings(parsed(ONE_OP, 23), RTX) == []


def test_the_node_is_named_inside_a_loop_too():
    body = LOOP.format(condition="yes").replace("e = Add(a, a)", "e = CumProd(a, n)")
    found = [finding for finding in findings(parsed(body, 26)) if finding.rule == "operator"]
    assert [finding.where.split()[0] for finding in found] == ["CumProd"]


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("which", ["hybrid_bundle", pytest.param("sealed_bundle", marks=pytest.mark.long)])
def test_no_target_refuses_what_the_exporter_writes(target, which, request):
    assert errors(lint(request.getfixturevalue(which), target)) == []


def test_who_exports_is_told_once_for_all_targets_what_they_cannot_take(tmp_path):
    graph = SUMMER_GRAPH.replace(
        "sums = Add(running, past)",
        'odd = BitShift <direction = "LEFT"> (bits, bits)\n'
        "    more = Cast <to = 1> (odd)\n    sums = Add(running, past)",
    )
    graph = graph.replace("int64 axis = {1}>", "int64 axis = {1}, uint8[1] bits = {1}>")
    bundle = open_bundle(write_graph(tmp_path / "odd", graph, SUMMER, {}))
    shifts = [line for line in notes(bundle) if "BitShift" in line]
    assert len(shifts) == 1
    assert shifts[0].startswith("local, rtx, orin-nano, orin-nx, orin-agx, thor cannot take BitShift")
    assert "Multiply or divide by a power of two" in shifts[0]


def test_a_model_too_large_to_build_on_a_board_is_noted(hybrid_bundle):
    files = {**hybrid_bundle.manifest.files, "weights.safetensors": ("", 2 << 30)}
    large = replace(hybrid_bundle, manifest=replace(hybrid_bundle.manifest, files=files))
    (found,) = [finding for finding in lint(large, ORIN) if finding.rule == "memory"]
    assert "2.0 GiB of weights" in found.where
    assert not any(finding.rule == "memory" for finding in lint(large, TARGETS["orin-agx"]))


def test_a_file_that_is_no_graph_is_an_error(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph" * 9)
    with pytest.raises(ExportError, match="cannot be read as ONNX"):
        lint_graph(tmp_path / "model.onnx", RTX)


def test_types_follow_from_the_gpus():
    assert "BFLOAT16" in element_types(("8.7",))
    assert "FLOAT8E4M3FN" not in element_types(("8.7",))
    assert "FLOAT4E2M1" in element_types(("11.0",))
    assert element_types(("7.5", "12.0")) == element_types(("7.5",))


def test_facts_of_a_local_tensorrt_follow_from_its_version_and_gpu():
    old, new = (
        of_flavour(Flavour("tensorrt", None, version, Cuda(device="GPU", compute_capability="8.6")))
        for version in ("10.3.0", "11.4.0")
    )
    assert (old.max_opset, new.max_opset) == (max_opset((10, 3)), 25)
    assert set(old.missing_operators) - set(new.missing_operators) == {
        "BlackmanWindow",
        "HannWindow",
        "HammingWindow",
        "STFT",
    }
    assert missing_operators((10, 3)) == ORIN.missing_operators


def test_only_portable_engines_can_be_narrowed_to_gpus():
    with pytest.raises(EngineError, match="is for --target rtx"):
        narrowed(ORIN, ("8.6",))
    assert narrowed(ORIN, ()) is ORIN


def test_every_board_says_what_it_is():
    for target in JETSONS:
        assert target.is_device
        assert target.memory_bytes > (target.workspace_bytes or 0) > 0
        assert target.system
        assert target.precision
