"""Reshapes that change nothing: to the shape that the data had, or from one axis to one."""

from __future__ import annotations

import onnx_ir as ir

from edgemem.export.passes.values import made_by


def drop_reshapes(model: ir.Model) -> None:
    """Let what comes out of reshapes as it went in be used as it went in.

    Before: a traced graph.
    After: such reshapes are unused.
    """
    for node in model.graph:
        if node.op_type == "Reshape" and not node.domain:
            origin, output = node.inputs[0], node.outputs[0]
            while (before := made_by(origin, "Reshape")) is not None:
                origin = before.inputs[0]
            if origin is not None and not output.is_graph_output() and _is_same(origin, output):
                ir.convenience.replace_all_uses_with(output, origin)


def _is_same(origin: ir.Value, output: ir.Value) -> bool:
    before, after = origin.meta.get("shape") or origin.shape, output.meta.get("shape")
    if before is None or after is None:
        return False
    return len(before) == len(after) == 1 or list(before) == list(after)
