"""The rules of the lint: each is a function of a graph and of a target, which holds the facts.

An error is a construct that the target's compiler refuses or silently changes. A warning is one that costs much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgemem.contract import POSITION
from edgemem.export.targets.nodes import (
    STANDARD_DOMAINS,
    all_nodes,
    constant_of,
    dtype_name,
    node_input,
    nodes_of,
    place,
)
from edgemem.runtimes.trt.options import TOP_K_LIMIT
from edgemem.runtimes.trt.targets import Target

Level = Literal["error", "warning"]

_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "MatMul", "Gemm", "Where", "Concat", "Equal", "Less", "Greater"}
)
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SCATTERS = frozenset({"ScatterElements", "ScatterND", "Scatter"})
_WIDE_BYTES = 1 << 20
_UNROLL = "--max-chunk 1 leaves one step, without a loop; edgemem adopt --unroll does it for an adopted file"
_CONTROL = {
    "Loop": "unroll it, or write it as one tensor operation over all time steps",
    "Scan": "unroll it, or write it as one tensor operation over all time steps",
    "If": "compute both sides and choose with Where",
    "LSTM": _UNROLL,
    "GRU": _UNROLL,
    "RNN": _UNROLL,
}


@dataclass(frozen=True)
class Occurrence:
    """One place where a rule applies.

    Attributes:
        where: The node, input or output.
        message: What is wrong.
        way_out: What to do; empty for the way out of the rule.
    """

    where: str
    message: str
    way_out: str = ""


Found = Iterator[Occurrence]


@dataclass(frozen=True)
class Rule:
    """One thing to look for.

    Attributes:
        name: Its name.
        level: How bad it is.
        find: Gives the occurrences in a graph.
        way_out: What to do about an occurrence that does not say so itself.
    """

    name: str
    level: Level
    find: Callable[[ir.Model, Target], Found]
    way_out: str


def _opset(model: ir.Model, target: Target) -> Found:
    version = model.opset_imports.get("", 0)
    if target.max_opset is not None and version > target.max_opset:
        yield Occurrence(f"opset {version}", f"the parser of {compiler(target)} reads opset {target.max_opset} at most")


def _operator(model: ir.Model, target: Target) -> Found:
    for node in all_nodes(model):
        if node.domain in STANDARD_DOMAINS and node.op_type in target.missing_operators:
            way = target.missing_operators[node.op_type]
            yield Occurrence(place(node), f"{compiler(target)} has no operator {node.op_type}", way)


def _domain(model: ir.Model, target: Target) -> Found:
    for node in all_nodes(model):
        if node.domain not in STANDARD_DOMAINS and node.op_identifier() not in model.functions:
            yield Occurrence(place(node), f"TensorRT has no operators of {node.domain}")


def _element_type(model: ir.Model, target: Target) -> Found:
    named: set[str] = set()
    for where, value in _values(model):
        dtype = dtype_name(value)
        if dtype and dtype not in target.element_types and dtype not in named:
            named.add(dtype)  # only once: every value after it has the type too
            gpus = f" on compute capability {', '.join(target.compute_capabilities)}"
            yield Occurrence(
                where,
                f"{target.title} does not compute with {dtype}{gpus if target.compute_capabilities else ''}",
            )


def _values(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Every value and its place. Types of weights count at the node that uses them."""
    for value in model.graph.inputs:
        yield f"input {value.name}", value
    for value in model.graph.initializers.values():
        used = next((node for node, _ in value.uses()), None)
        # An int8 tensor is refused for how it is used; shapes and indices are int64 everywhere.
        if used is not None:
            yield place(used), value
    for node in all_nodes(model):
        for value in node.outputs:
            yield place(node), value


def _products(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, *_PRODUCTS):
        types = {dtype_name(value) for value in node.inputs} & target.no_products
        if types:
            gpus = ", ".join(target.compute_capabilities)
            yield Occurrence(place(node), f"compute capability {gpus} cannot multiply {types.pop()} matrices")


def _double(model: ir.Model, target: Target) -> Found:
    for node in all_nodes(model):
        if any(dtype_name(value) == "DOUBLE" for value in node.outputs):
            yield Occurrence(place(node), "TensorRT silently computes float64 in float32")


def _integer_io(model: ir.Model, target: Target) -> Found:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if dtype_name(value) == "UINT8" and any(node.op_type != "Cast" for node, _ in value.uses()):
            yield Occurrence(f"input {value.name}", "TensorRT can only cast uint8")


def _mixed_types(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, *_ELEMENTWISE):
        values = node.inputs[1 if node.op_type == "Where" else 0 :]
        types = {dtype_name(value) for value in values if value is not None} - {""}
        if node.op_type == "Pow":
            types = {dtype for dtype in types if "INT" not in dtype}
        if len(types) > 1:
            yield Occurrence(place(node), f"its inputs have different types: {' and '.join(sorted(types))}")


def _zero_point(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, *_QUANTISED):
        value = node_input(node, 2)
        if value is None:
            continue
        constant = constant_of(value)
        if constant is None or np.any(constant.astype(np.float32) != 0):
            yield Occurrence(place(node), "its zero point is not a constant zero")


def _unsigned_weights(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, "DequantizeLinear"):
        if dtype_name(node_input(node, 0)) in ("UINT8", "UINT4", "UINT16", "INT16", "INT32"):
            yield Occurrence(place(node), f"it dequantises {dtype_name(node_input(node, 0))}")


def _scatter(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, *_SCATTERS):
        reduction = node.attributes.get_string("reduction", "none")
        if reduction != "none":
            yield Occurrence(place(node), f"it combines new values with old ones (reduction={reduction!r})")


def _loop_condition(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, "Loop"):
        if node_input(node, 1) is None:
            yield Occurrence(place(node), "it has no condition")


def _attention(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, "Attention"):
        if any(node_input(node, index) is not None for index in (4, 5)) or len(node.outputs) > 1:
            yield Occurrence(place(node), "it takes past keys and values, which TensorRT does not support")
        elif node_input(node, 6) is not None:
            yield Occurrence(place(node), "TensorRT silently ignores its nonpad_kv_seqlen")
        elif dtype_name(node_input(node, 0)) == "FLOAT":
            yield Occurrence(place(node), "TensorRT has no kernel for it in float32")


def _fused_attention(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, "Attention"):
        if dtype_name(node_input(node, 0)) != "FLOAT" and len(node.outputs) == 1:
            yield Occurrence(place(node), "TensorRT compiles it only for shapes that its fused kernels support")


def _tensor_scatter(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, "TensorScatter"):
        cache = node_input(node, 0)
        if node.attributes.get_string("mode", "linear") != "linear":
            yield Occurrence(place(node), "it writes into a ring; TensorRT has only the linear mode")
        elif cache is not None and cache.shape is not None and len(cache.shape) != 4:
            yield Occurrence(place(node), f"its cache has {len(cache.shape)} axes; TensorRT wants 4")


def _top_k(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, "TopK"):
        k = constant_of(node_input(node, 1))
        if k is not None and int(k.reshape(-1)[0]) > TOP_K_LIMIT:
            yield Occurrence(place(node), f"k is {int(k.reshape(-1)[0])}; TensorRT allows at most {TOP_K_LIMIT}")


def _unused_input(model: ir.Model, target: Target) -> Found:
    for value in model.graph.inputs:
        # The host provides the position: a model that ignores it loses nothing.
        if not value.uses() and value not in model.graph.outputs and value.name != POSITION:
            yield Occurrence(f"input {value.name}", "nothing reads it; TensorRT drops it with a warning")


def _shared_name(model: ir.Model, target: Target) -> Found:
    inputs = {value.name for value in model.graph.inputs}
    for value in model.graph.outputs:
        if value.name in inputs:
            yield Occurrence(f"output {value.name}", "an input has the same name; TensorRT renames the input")


def _control_flow(model: ir.Model, target: Target) -> Found:
    for node in nodes_of(model, *_CONTROL):
        yield Occurrence(place(node), f"the engine with its {node.op_type} is large and slow", _CONTROL[node.op_type])


def _precision(model: ir.Model, target: Target) -> Found:
    """Every step reads all weights, and on a device this takes most of the step."""
    wide = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None and dtype_name(value) == "FLOAT"
    )
    if target.precision and wide >= _WIDE_BYTES:
        yield Occurrence(
            "weights",
            f"{wide / 2**20:.0f} MiB are float32",
            f"Export for {target.title} with {target.precision}.",
        )


def _cumulative_sum(model: ir.Model, target: Target) -> Found:
    if target.flavour == "tensorrt" and target.tensorrt < (10, 13):
        for node in nodes_of(model, "CumSum"):
            yield Occurrence(place(node), f"{compiler(target)} runs CumSum as a loop")


def compiler(target: Target) -> str:
    """The target's compiler with its version, in words."""
    name = "TensorRT-RTX" if target.flavour == "tensorrt_rtx" else "TensorRT"
    return f"{name} {'.'.join(map(str, target.tensorrt[:2]))}"


RULES: tuple[Rule, ...] = (
    Rule("opset", "error", _opset, "Export with opset 20, as edgemem export does."),
    Rule("operator", "error", _operator, "Rewrite it with other operators."),
    Rule("domain", "error", _domain, "Export with standard ONNX operators only."),
    Rule(
        "element-type",
        "error",
        _element_type,
        "Export with --dtype fp16 or fp32, or with other --weights, or build for newer GPUs (--compute-capability).",
    ),
    Rule("product-type", "error", _products, "Export with --dtype fp16, or build for Ampere and newer GPUs."),
    Rule("uint8", "error", _integer_io, "Cast it to int32 first."),
    Rule("mixed-types", "error", _mixed_types, "Cast one of them."),
    Rule("zero-point", "error", _zero_point, "Quantise symmetrically, without a zero point."),
    Rule("weight-type", "error", _unsigned_weights, "Quantise to int8 or int4, symmetrically."),
    Rule("scatter-reduction", "error", _scatter, "Gather, compute, and scatter without a reduction."),
    Rule("loop-condition", "error", _loop_condition, "Give it a constant True."),
    Rule(
        "attention",
        "error",
        _attention,
        "Write attention out as MatMul and Softmax with an explicit mask.",
    ),
    Rule(
        "tensor-scatter", "error", _tensor_scatter, "Let the host write the ring (an appended state), or use ScatterND."
    ),
    Rule("top-k", "error", _top_k, "Use a smaller k."),
    Rule("unused-input", "error", _unused_input, "Fix the model: a state that nothing reads is lost."),
    Rule("shared-name", "error", _shared_name, "Give them different names: past.… and present.…"),
    Rule(
        "float64",
        "warning",
        _double,
        "Compute in float32 or in integers; edgemem adopt --unroll does it for --between.",
    ),
    Rule("fused-attention", "warning", _fused_attention, "Write attention out as MatMul and Softmax."),
    Rule("control-flow", "warning", _control_flow, "Write it as one tensor operation."),
    Rule("precision", "warning", _precision, ""),
    Rule("cumulative-sum", "warning", _cumulative_sum, "Write it as a MatMul with a triangular matrix."),
)
"""Every rule, errors first."""
