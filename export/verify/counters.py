"""No position may be computed in half precision.

float16 counts to 2,048, bfloat16 to 256: a counter in half precision stops there. A check of a few hundred steps may
not show it, so every integer that follows from a position is traced through the graph.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemem.contract import POSITION
from edgemem.errors import VerificationError

_HALF = {ir.DataType.FLOAT16: 2**11, ir.DataType.BFLOAT16: 2**8}
_WHOLE = (ir.DataType.INT64, ir.DataType.INT32)
_COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_VALUES: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (),
    "Expand": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Reshape": (0,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Shape": (),
    "Slice": (0,),
    "Where": (1, 2),
}
"""For operators that use some inputs only as shapes, indices or conditions: the inputs whose values they output."""


def check_counters(model: ir.Model, file: str) -> None:
    """Refuse a graph that casts a position to half precision.

    Args:
        model: A graph of the bundle.
        file: Its name.

    Raises:
        VerificationError: It does.
    """
    _follow_counts(model.graph, {v for v in model.graph.inputs if v.name in (POSITION, f"past.{POSITION}")}, file)


def _follow_counts(graph: ir.Graph, counts: set[ir.Value], file: str) -> None:
    """Add to ``counts`` the integers that a graph computes from them."""
    for node in graph:  # in topological order
        if node.op_type == "Scan":
            body = node.attributes["body"].as_graph()
            inside = counts | {inner for inner, outer in zip(body.inputs, node.inputs, strict=True) if outer in counts}
            _follow_counts(body, inside, file)
            counts.update(outer for inner, outer in zip(body.outputs, node.outputs, strict=True) if inner in inside)
            continue
        values = [node.inputs[i] for i in _VALUES[node.op_type]] if node.op_type in _VALUES else node.inputs
        if counts.isdisjoint(value for value in values if value is not None):
            continue
        if node.op_type == "Cast":
            to = ir.DataType(node.attributes["to"].as_int())
            if to in _HALF:
                raise VerificationError(
                    f"{file}: {node.outputs[0].name} casts a position to {to.name.lower()}, which counts to "
                    f"{_HALF[to]:,} and then stops.",
                    hint="Keep counters in int64, and what is computed from them in float32.",
                )
            if to not in _WHOLE:
                continue
        elif node.op_type in _COMPARISONS:
            continue
        counts.update(node.outputs)
