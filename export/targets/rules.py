"""The rules of the lint: each one function over a graph and a target, which holds the facts.

An error is what the target's compiler refuses, or takes and silently does something else with; a warning is what
compiles and costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

from edgemem.contract import POSITION
from edgemem.runtimes.trt.options import TOP_K_LIMIT
from edgemem.runtimes.trt.targets import Target

Level = Literal["error", "warning"]
Found = Iterator[tuple[str, str]]

_STANDARD_DOMAINS = ("", "ai.onnx")
_ELEMENTWISE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "MatMul", "Gemm", "Where", "Concat", "Equal", "Less", "Greater"}
)
_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})
_QUANTISED = frozenset({"QuantizeLinear", "DequantizeLinear"})
_SCATTERS = frozenset({"ScatterElements", "ScatterND", "Scatter"})
_WIDE_BYTES = 1 << 20
_CONTROL = {
    "Loop": "unroll it, or write it as one tensor operation over all time steps",
    "Scan": "unroll it, or write it as one tensor operation over all time steps",
    "If": "compute both sides and choose with Where",
    "LSTM": "--max-chunk 1 leaves one step, without a loop",
    "GRU": "--max-chunk 1 leaves one step, without a loop",
    "RNN": "--max-chunk 1 leaves one step, without a loop",
}


@dataclass(frozen=True)
class Rule:
    """One thing to look for.

    Attributes:
        name: Its name.
        level: How bad it is.
        find: Gives place and message of each occurrence; a message may carry its own way out after ``" | "``.
        way_out: What to do about it.
    """

    name: str
    level: Level
    find: Callable[[ir.Model, Target], Found]
    way_out: str


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    yield from RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from RecursiveGraphIterator(function.graph)


def _of(model: ir.Model, *operators: str) -> Iterator[ir.Node]:
    return (node for node in _nodes(model) if node.domain in _STANDARD_DOMAINS and node.op_type in operators)


def _place(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or '(without a name)'}"


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _dtype(value: ir.Value | None) -> str:
    """Element type by ONNX's name; ``""`` where it is not known."""
    if value is None:
        return ""
    dtype = value.dtype or (value.const_value.dtype if value.const_value is not None else None)
    return dtype.name if dtype is not None and dtype.name != "UNDEFINED" else ""


def _constant(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The value, where it is an initialiser or a Constant's output."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return np.asarray(tensor.numpy()) if tensor is not None else None


def _opset(model: ir.Model, target: Target) -> Found:
    version = model.opset_imports.get("", 0)
    if target.max_opset is not None and version > target.max_opset:
        yield f"opset {version}", f"the parser of {_tensorrt(target)} reads opset {target.max_opset} at most"


def _operator(model: ir.Model, target: Target) -> Found:
    for node in _nodes(model):
        if node.domain in _STANDARD_DOMAINS and node.op_type in target.missing_operators:
            way = target.missing_operators[node.op_type]
            yield _place(node), f"{_tensorrt(target)} has no operator {node.op_type} | {way}"


def _domain(model: ir.Model, target: Target) -> Found:
    for node in _nodes(model):
        if node.domain not in _STANDARD_DOMAINS and node.op_identifier() not in model.functions:
            yield _place(node), f"an operator of {node.domain}, which no TensorRT knows"


def _element_type(model: ir.Model, target: Target) -> Found:
    named: set[str] = set()
    for where, value in _values(model):
        dtype = _dtype(value)
        if dtype and dtype not in target.element_types and dtype not in named:
            named.add(dtype)  # once: every value after it would be named too
            gpus = f" on compute capability {', '.join(target.compute_capabilities)}"
            yield (
                where,
                f"{dtype} is no type that {target.title} computes with{gpus if target.compute_capabilities else ''}",
            )


def _values(model: ir.Model) -> Iterator[tuple[str, ir.Value]]:
    """Every value, and where it comes from. Types of weights count where they are dequantised."""
    for value in model.graph.inputs:
        yield f"input {value.name}", value
    for value in model.graph.initializers.values():
        used = next((node for node, _ in value.uses()), None)
        # An int8 tensor is refused for what it is used as; shapes and indices are int64 everywhere.
        if used is not None:
            yield _place(used), value
    for node in _nodes(model):
        for value in node.outputs:
            yield _place(node), value


def _products(model: ir.Model, target: Target) -> Found:
    for node in _of(model, *_PRODUCTS):
        types = {_dtype(value) for value in node.inputs} & target.no_products
        if types:
            gpus = ", ".join(target.compute_capabilities)
            yield _place(node), f"it multiplies matrices of {types.pop()}, which compute capability {gpus} does not"


def _double(model: ir.Model, target: Target) -> Found:
    for node in _nodes(model):
        if any(_dtype(value) == "DOUBLE" for value in node.outputs):
            yield _place(node), "float64 is computed in float32, without a word"


def _integer_io(model: ir.Model, target: Target) -> Found:
    for value in (*model.graph.inputs, *model.graph.outputs):
        if _dtype(value) == "UINT8" and any(node.op_type != "Cast" for node, _ in value.uses()):
            yield f"input {value.name}", "uint8 can be cast, and nothing else"


def _mixed_types(model: ir.Model, target: Target) -> Found:
    for node in _of(model, *_ELEMENTWISE):
        types = {_dtype(value) for value in node.inputs[1 if node.op_type == "Where" else 0 :] if value is not None} - {
            ""
        }
        if node.op_type == "Pow":
            types = {dtype for dtype in types if "INT" not in dtype}
        if len(types) > 1:
            yield _place(node), f"its inputs are of different types: {' and '.join(sorted(types))}"


def _zero_point(model: ir.Model, target: Target) -> Found:
    for node in _of(model, *_QUANTISED):
        value = _input(node, 2)
        if value is None:
            continue
        constant = _constant(value)
        if constant is None or np.any(constant.astype(np.float32) != 0):
            yield _place(node), "its zero point is not a constant zero"


def _unsigned_weights(model: ir.Model, target: Target) -> Found:
    for node in _of(model, "DequantizeLinear"):
        if _dtype(_input(node, 0)) in ("UINT8", "UINT4", "UINT16", "INT16", "INT32"):
            yield _place(node), f"it dequantises {_dtype(_input(node, 0))}"


def _scatter(model: ir.Model, target: Target) -> Found:
    for node in _of(model, *_SCATTERS):
        reduction = node.attributes.get_string("reduction", "none")
        if reduction != "none":
            yield _place(node), f"it combines with what is there (reduction={reduction!r})"


def _loop_condition(model: ir.Model, target: Target) -> Found:
    for node in _of(model, "Loop"):
        if _input(node, 1) is None:
            yield _place(node), "it has no condition"


def _attention(model: ir.Model, target: Target) -> Found:
    for node in _of(model, "Attention"):
        if any(_input(node, index) is not None for index in (4, 5)) or len(node.outputs) > 1:
            yield _place(node), "it carries past keys and values, which TensorRT does not"
        elif _input(node, 6) is not None:
            yield _place(node), "TensorRT leaves its nonpad_kv_seqlen out, without a word"
        elif _dtype(_input(node, 0)) == "FLOAT":
            yield _place(node), "TensorRT has no kernel of it for float32"


def _fused_attention(model: ir.Model, target: Target) -> Found:
    for node in _of(model, "Attention"):
        if _dtype(_input(node, 0)) != "FLOAT" and len(node.outputs) == 1:
            yield _place(node), "TensorRT compiles it only for shapes for which it has a fused kernel"


def _tensor_scatter(model: ir.Model, target: Target) -> Found:
    for node in _of(model, "TensorScatter"):
        cache = _input(node, 0)
        if node.attributes.get_string("mode", "linear") != "linear":
            yield _place(node), "it writes in circles; TensorRT has the linear mode alone"
        elif cache is not None and cache.shape is not None and len(cache.shape) != 4:
            yield _place(node), f"its cache has {len(cache.shape)} axes; TensorRT takes 4"


def _top_k(model: ir.Model, target: Target) -> Found:
    for node in _of(model, "TopK"):
        k = _constant(_input(node, 1))
        if k is not None and int(k.reshape(-1)[0]) > TOP_K_LIMIT:
            yield _place(node), f"it picks {int(k.reshape(-1)[0])}; TensorRT picks {TOP_K_LIMIT} at most"


def _unused_input(model: ir.Model, target: Target) -> Found:
    for value in model.graph.inputs:
        # The position is the host's own: a model that looks at none loses nothing.
        if not value.uses() and value not in model.graph.outputs and value.name != POSITION:
            yield f"input {value.name}", "nothing reads it; TensorRT drops it with a warning"


def _shared_name(model: ir.Model, target: Target) -> Found:
    inputs = {value.name for value in model.graph.inputs}
    for value in model.graph.outputs:
        if value.name in inputs:
            yield f"output {value.name}", "an input has that name too; TensorRT renames the input"


def _control_flow(model: ir.Model, target: Target) -> Found:
    for node in _of(model, *_CONTROL):
        yield _place(node), f"{node.op_type} compiles, to an engine that is large and slow | {_CONTROL[node.op_type]}"


def _precision(model: ir.Model, target: Target) -> Found:
    """Weights are read at every step, and reading them is what a step of a device costs."""
    wide = sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None and _dtype(value) == "FLOAT"
    )
    if target.precision and wide >= _WIDE_BYTES:
        yield (
            "weights",
            f"{wide / 2**20:.0f} MiB of them are float32 | Export for {target.title} with {target.precision}.",
        )


def _cumulative_sum(model: ir.Model, target: Target) -> Found:
    if target.flavour == "tensorrt" and target.tensorrt < (10, 13):
        for node in _of(model, "CumSum"):
            yield _place(node), f"{_tensorrt(target)} runs CumSum as a loop"


def _tensorrt(target: Target) -> str:
    name = "TensorRT-RTX" if target.flavour == "tensorrt_rtx" else "TensorRT"
    return f"{name} {'.'.join(map(str, target.tensorrt[:2]))}"


RULES: tuple[Rule, ...] = (
    Rule("opset", "error", _opset, "Export with opset 20, as edgemem export does."),
    Rule("operator", "error", _operator, "Rewrite it with other operators."),
    Rule("domain", "error", _domain, "Export with standard ONNX operators alone."),
    Rule(
        "element-type",
        "error",
        _element_type,
        "Export with --dtype fp16 or fp32, or with other --weights, or build for newer GPUs (--compute-capability).",
    ),
    Rule("product-type", "error", _products, "Export with --dtype fp16, or build for GPUs from Ampere on."),
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
        "tensor-scatter", "error", _tensor_scatter, "Leave the ring to the host (an appended state), or use ScatterND."
    ),
    Rule("top-k", "error", _top_k, "Pick fewer."),
    Rule("unused-input", "error", _unused_input, "Mend the model: a state that nothing reads is lost on the way."),
    Rule("shared-name", "error", _shared_name, "Give them names of their own: past.… and present.…"),
    Rule("float64", "warning", _double, "Compute in float32 or in integers."),
    Rule("fused-attention", "warning", _fused_attention, "Write attention out as MatMul and Softmax."),
    Rule("control-flow", "warning", _control_flow, "Write it as one tensor operation."),
    Rule("precision", "warning", _precision, ""),
    Rule("cumulative-sum", "warning", _cumulative_sum, "Write it as a MatMul with a triangular matrix."),
)
"""Every rule, errors first."""
