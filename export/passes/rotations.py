"""Rotary positions inside the operator for attention, where transformers' models turn queries and keys themselves.

``x · cos + [-x₂, x₁] · sin`` for ``x = [x₁, x₂]`` (Su et al. 2021, eq. 34), on heads that were moved before the steps.
The operator takes the projections as they are, and the cosines and sines once for all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from edgemem.export.passes.values import constant, input_of, made_by
from edgemem.memories.site import ATTENTION


@dataclass(frozen=True)
class _Turned:
    """``x`` and the tables that turn it, as they were before heads and steps changed places."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


def join_rotations(model: ir.Model) -> None:
    """Let the operator turn queries and keys.

    Before: a graph with the operator; some of them take queries, keys and values ``[B, H, T, D]``, turned.
    After: where the turns are of the form above, it takes ``[B, T, H · D]`` and the tables; what turned is unused.
    """
    graph = model.graph
    tables: dict[tuple[ir.Value, ir.Value], ir.Value] = {}
    for node in list(graph):
        if (
            node.op_type == ATTENTION
            and node.attributes["heads_first"].as_int()
            and not node.attributes["rotate"].as_int()
        ):
            q, k, v = node.inputs[:3]
            turned_q, turned_k, plain_v = _turned(q), _turned(k), _steps_first(v)
            if turned_q is None or turned_k is None or plain_v is None:
                continue
            if (turned_q.cos, turned_q.sin) == (turned_k.cos, turned_k.sin):
                _join(graph, node, turned_q, turned_k.x, plain_v, tables)


def _join(
    graph: ir.Graph,
    node: ir.Node,
    q: _Turned,
    k: ir.Value,
    v: ir.Value,
    tables: dict[tuple[ir.Value, ir.Value], ir.Value],
) -> None:
    if (q.cos, q.sin) not in tables:
        both = ir.node("Concat", [q.cos, q.sin], {"axis": -1})
        both.outputs[0].name = f"{q.cos.name}.{q.sin.name}"
        graph.insert_before(node, both)
        tables[q.cos, q.sin] = both.outputs[0]
    for at, value in enumerate((q.x, k, v)):
        node.replace_input_with(at, value)
    node.replace_input_with(5, tables[q.cos, q.sin])
    node.attributes["heads_first"] = ir.AttrInt64("heads_first", 0)
    node.attributes["rotate"] = ir.AttrInt64("rotate", 1)


def _turned(value: ir.Value | None) -> _Turned | None:
    total = made_by(value, "Add")
    if total is None:
        return None
    for straight, crossed in (total.inputs, reversed(total.inputs)):
        one, other = made_by(straight, "Mul"), made_by(crossed, "Mul")
        if one is None or other is None:
            continue
        for x, cos in (one.inputs, reversed(one.inputs)):
            for half, sin in (other.inputs, reversed(other.inputs)):
                plain = _steps_first(x)
                tables = [_over_heads(table) for table in (cos, sin)]
                if plain is not None and _is_crossed(half, x) and tables[0] is not None and tables[1] is not None:
                    return _Turned(plain, tables[0], tables[1])
    return None


def _is_crossed(value: ir.Value | None, x: ir.Value | None) -> bool:
    """Whether a value is ``[-x₂, x₁]`` of the halves of ``x``'s last axis."""
    joined, shape = made_by(value, "Concat"), None if x is None else x.meta.get("shape")
    if joined is None or not shape or len(joined.inputs) != 2 or not isinstance(shape[-1], int):
        return False
    last, half = len(shape) - 1, shape[-1] // 2
    negative = made_by(joined.inputs[0], "Neg")
    if negative is None or joined.attributes["axis"].as_int() not in (-1, last):
        return False
    size = shape[-1]
    return _is_slice(negative.inputs[0], x, last, half, size, size) and _is_slice(
        joined.inputs[1], x, last, 0, half, size
    )


def _is_slice(value: ir.Value | None, x: ir.Value | None, axis: int, start: int, end: int, size: int) -> bool:
    """Whether a value is ``start .. end - 1`` along an axis of ``x`` that has ``size`` places."""
    node = made_by(value, "Slice")
    if node is None or node.inputs[0] is not x:
        return False
    found = [constant(input_of(node, at)) for at in range(1, 5)]
    first, stop, along, step = (None if a is None or a.size != 1 else int(a.item()) for a in found)
    # An end behind the axis is its end.
    return (
        first == start
        and stop is not None
        and min(stop, size) == end
        and along in (axis, axis - 4)
        and step in (None, 1)
    )


def _over_heads(value: ir.Value | None) -> ir.Value | None:
    """A table ``[B, T, R]`` of which ``value`` is ``[B, 1, T, R]``."""
    node = made_by(value, "Unsqueeze")
    axes = constant(input_of(node, 1))
    return node.inputs[0] if node is not None and axes is not None and axes.tolist() == [1] else None


def _steps_first(value: ir.Value | None) -> ir.Value | None:
    """``[B, T, H · D]`` or ``[B, T, H, D]`` where a value is the same as ``[B, H, T, D]``."""
    moved = made_by(value, "Transpose")
    if moved is None or list(moved.attributes["perm"].as_ints()) != [0, 2, 1, 3]:
        return None
    flat = input_of(made_by(moved.inputs[0], "Reshape"), 0)
    shape = None if flat is None else flat.meta.get("shape")
    return flat if shape is not None and len(shape) == 3 else moved.inputs[0]
