"""Reads a graph for the rules of the lint."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.traversal import RecursiveGraphIterator

STANDARD_DOMAINS = ("", "ai.onnx")


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those of subgraphs and functions too."""
    yield from RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from RecursiveGraphIterator(function.graph)


def nodes_of(model: ir.Model, *operators: str) -> Iterator[ir.Node]:
    """Every node of these standard operators."""
    return (node for node in all_nodes(model) if node.domain in STANDARD_DOMAINS and node.op_type in operators)


def place(node: ir.Node) -> str:
    """A node in words."""
    return f"{node.op_type} {node.name or '(without a name)'}"


def node_input(node: ir.Node, index: int) -> ir.Value | None:
    """An input of a node; ``None`` if it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def dtype_name(value: ir.Value | None) -> str:
    """ONNX's name of the element type; ``""`` if it is not known."""
    if value is None:
        return ""
    dtype = value.dtype or (value.const_value.dtype if value.const_value is not None else None)
    return dtype.name if dtype is not None and dtype.name != "UNDEFINED" else ""


def constant_of(value: ir.Value | None) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
    """The array of an initialiser or of a Constant's output; ``None`` for other values."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return np.asarray(tensor.numpy()) if tensor is not None else None
