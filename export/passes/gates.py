"""The gate of an MLP as one operator: ``silu(gate) · up`` (Shazeer 2020, SwiGLU)."""

from __future__ import annotations

import onnx_ir as ir

from edgemem.export.passes.values import replace_value
from edgemem.memories.site import DOMAIN

GATE = "SwiGLU"


def join_gates(model: ir.Model) -> None:
    """Put the operator in the place of ``silu(gate) · up``, and of the split where the two are halves of one tensor.

    Before: a traced graph.
    After: what computed the gates is unused.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type != "Mul" or node.domain:
            continue
        for silu, up in (node.inputs, reversed(node.inputs)):
            gate = _silu_of(silu)
            if gate is not None and up is not None:
                whole = _halves(gate, up)
                _join(graph, node, [whole] if whole is not None else [gate, up])
                break


def _silu_of(value: ir.Value | None) -> ir.Value | None:
    """``x`` where a value is ``x · sigmoid(x)``."""
    product = value.producer() if value is not None else None
    if product is None or product.op_type != "Mul" or product.domain:
        return None
    for x, gate in (product.inputs, reversed(product.inputs)):
        sigmoid = gate.producer() if gate is not None else None
        if sigmoid is not None and sigmoid.op_type == "Sigmoid" and sigmoid.inputs[0] is x:
            return x
    return None


def _halves(gate: ir.Value, up: ir.Value) -> ir.Value | None:
    """What the two are the first and the second half of, along the last axis."""
    split = gate.producer()
    if split is None or split.op_type != "Split" or list(split.outputs) != [gate, up]:
        return None
    axis, shape = split.attributes.get("axis"), gate.meta.get("shape")
    return split.inputs[0] if axis is not None and shape and axis.as_int() in (-1, len(shape) - 1) else None


def _join(graph: ir.Graph, node: ir.Node, inputs: list[ir.Value]) -> None:
    operator = ir.node(GATE, inputs, domain=DOMAIN, version=1)
    graph.insert_before(node, operator)
    replace_value(node.outputs[0], operator.outputs[0])
