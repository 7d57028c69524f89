"""Norms: in the form that engines know as one kernel, and as one operator with the sum before them.

``y = x / sqrt(mean(x²) + ε) · w`` (Zhang and Sennrich 2019, eq. 4). transformers writes ``w · (x · rsqrt(...))``; ONNX
Runtime looks for a quotient.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgemem.export.passes.values import constant, input_of, made_by, replace_value
from edgemem.memories.site import DOMAIN

NORM = "RMSNorm"


def divide_by_roots(model: ir.Model) -> None:
    """Write ``x · (1 / sqrt(y))`` as ``x / sqrt(y)``.

    Before: any graph.
    After: no product with the reciprocal of a root, where nothing else uses that reciprocal.
    """
    for graph in model.graphs():
        for node in [node for node in graph if node.op_type == "Mul" and not node.domain]:
            for x, inverse in (node.inputs, reversed(node.inputs)):
                root = _root_of(inverse)
                if root is not None:
                    _divide(graph, node, x, root)
                    break


def _root_of(value: ir.Value | None) -> ir.Value | None:
    """``sqrt(y)`` where a value is its reciprocal, and has one use."""
    reciprocal = value.producer() if value is not None else None
    if reciprocal is None or reciprocal.op_type != "Reciprocal" or len(list(reciprocal.outputs[0].uses())) != 1:
        return None
    root = reciprocal.inputs[0]
    producer = root.producer() if root is not None else None
    return root if producer is not None and producer.op_type == "Sqrt" else None


def _divide(graph: ir.Graph, node: ir.Node, x: ir.Value | None, root: ir.Value) -> None:
    division = ir.node("Div", [x, root])
    graph.insert_before(node, division)
    (reciprocal,) = (use.node for use in root.uses() if use.node.op_type == "Reciprocal")
    replace_value(node.outputs[0], division.outputs[0])
    graph.remove([node, reciprocal], safe=True)


@dataclass(frozen=True)
class _Norm:
    """A norm of a graph: ``product`` is ``x / sqrt(mean(x²) + ε) · w``."""

    product: ir.Node
    x: ir.Value
    weight: ir.Value
    eps: float


def join_norms(model: ir.Model) -> None:
    """Put the operator in the place of a norm, and of the sum that it normalises.

    Before: a traced graph; no norm multiplies with the reciprocal of a root.
    After: what computed the norms is unused.
    """
    graph = model.graph
    for node in list(graph):
        norm = _norm_at(node)
        if norm is not None:
            _join(graph, norm)


def _norm_at(node: ir.Node) -> _Norm | None:
    if node.op_type != "Mul" or node.domain:
        return None
    for quotient, weight in (node.inputs, reversed(node.inputs)):
        grouped = made_by(quotient, "Reshape")
        division = made_by(quotient if grouped is None else grouped.inputs[0], "Div")
        if division is None or weight is None or not weight.is_initializer():
            continue
        x, root = division.inputs
        total = made_by(input_of(made_by(root, "Sqrt"), 0), "Add")
        if x is None or total is None:
            continue
        for mean, eps in (total.inputs, reversed(total.inputs)):
            value = _scalar(eps)
            if value is None or not _is_mean_square(mean, x):
                continue
            if grouped is None:
                return _Norm(node, x, weight, value)
            whole = input_of(made_by(x, "Reshape"), 0)  # into one group, and back
            if whole is not None and same_shape(whole, node.outputs[0]) and _last(whole) == _last(x):
                return _Norm(node, whole, weight, value)
    return None


def _last(value: ir.Value) -> object:
    """The size of a value's last axis."""
    shape = value.meta.get("shape") or value.shape
    return None if not shape else shape[-1]


def _is_mean_square(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value is ``mean(x²)`` over the last axis of ``x``."""
    mean = made_by(value, "ReduceMean")
    square = made_by(input_of(mean, 0), "Pow")
    if mean is None or square is None or square.inputs[0] is not x or _scalar(square.inputs[1]) != 2:
        return False
    shape, axes = x.meta.get("shape") or x.shape, constant(input_of(mean, 1))
    last = [-1] if shape is None else [-1, len(shape) - 1]
    return axes is not None and axes.size == 1 and axes.item() in last


def _join(graph: ir.Graph, norm: _Norm) -> None:
    adding = made_by(norm.x, "Add")
    parts = [] if adding is None else list(adding.inputs)
    is_sum = len(parts) == 2 and all(same_shape(part, norm.x) for part in parts)
    inputs = [parts[0], norm.weight, parts[1]] if is_sum else [norm.x, norm.weight]
    operator = ir.node(NORM, inputs, {"eps": norm.eps}, domain=DOMAIN, version=1, num_outputs=1 + is_sum)
    graph.insert_before(adding if is_sum and adding is not None else norm.product, operator)
    for old, new in zip((norm.product.outputs[0], norm.x), operator.outputs, strict=False):
        replace_value(old, new)


def same_shape(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a value that is computed is known to have the shape of ``x``."""
    if value is None or value.is_initializer():
        return False
    mine, wanted = value.meta.get("shape") or value.shape, x.meta.get("shape") or x.shape
    return mine is not None and wanted is not None and list(mine) == list(wanted)


def _scalar(value: ir.Value | None) -> float | None:
    found = constant(value)
    return float(found.item()) if found is not None and found.size == 1 else None
