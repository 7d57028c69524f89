"""Putting one value of a graph in the place of another."""

from __future__ import annotations

import onnx_ir as ir


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let all that uses ``old`` use ``new``, the graph's outputs too; ``new`` takes over its name, type and shape."""
    name, old.name = old.name, f"{old.name}.replaced"
    new.name, new.type, new.shape = name, old.type, old.shape
    new.meta.update(old.meta)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
