"""Rings in fewer bits than the model computes in: ``--memory-dtype``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from edgemem.contract import Contract
from edgemem.dtypes import FloatDType
from edgemem.errors import ExportError
from edgemem.export.passes.sites import ATTENTION
from edgemem.export.passes.values import made_by, replace_value
from edgemem.memories.site import DOMAIN

_TYPES = {"float16": ir.DataType.FLOAT16}
_RINGS = {8: 1, 9: 2}
"""The operator's inputs that are rings, and the outputs with their new entries."""


def narrow_rings(models: Sequence[ir.Model], contract: Contract, dtype: FloatDType) -> Contract:
    """Store appended states in ``dtype``, and round every entry before anything reads it.

    Before: traced graphs that keep ``contract``; their rings are float32.
    After: the rings are ``dtype``. A chunk reads its own entries as later calls will: rounded.

    Args:
        models: The graphs; changed in place.
        contract: Their contract.
        dtype: Of the rings.

    Returns:
        The contract that the graphs keep now.

    Raises:
        ExportError: There is no float32 ring.
    """
    rings = {state.name for state in contract if state.update == "append" and state.dtype == "float32"}
    if not rings:
        raise ExportError(
            "the model has no float32 ring that could be stored in fewer bits.",
            hint="Export without --memory-dtype. With --sealed, rings are inside the graph and stay as they are.",
        )
    for model in models:
        for state in contract:
            if state.name in rings:
                _narrow_input(model.graph, state.input_name, _TYPES[dtype])
                _narrow_output(model.graph, state.output_name, _TYPES[dtype])
    states = tuple(replace(state, dtype=dtype) if state.name in rings else state for state in contract)
    return replace(contract, states=states)


def _narrow_input(graph: ir.Graph, name: str, dtype: ir.DataType) -> None:
    ring = next(value for value in graph.inputs if value.name == name)
    wide = _cast(ring, ir.DataType.FLOAT, f"{name}.float32")
    wide.outputs[0].meta.update(ring.meta)
    ir.convenience.replace_all_uses_with(ring, wide.outputs[0])
    wide.replace_input_with(0, ring)
    ring.type = ir.TensorType(dtype)
    graph.insert_before(graph[0], wide)


def _narrow_output(graph: ir.Graph, name: str, dtype: ir.DataType) -> None:
    entry = next(value for value in graph.outputs if value.name == name)
    maker = entry.producer()
    assert maker is not None
    narrow = _cast(entry, dtype, name)
    wide = _cast(narrow.outputs[0], ir.DataType.FLOAT, f"{name}.float32")
    graph.insert_after(maker, [narrow, wide])
    # The operator rounds by itself: its marks keep what was not rounded.
    for use in [use for use in entry.uses() if use.node is not narrow and use.node.domain != DOMAIN]:
        use.node.replace_input_with(use.idx, wide.outputs[0])
    wide.outputs[0].meta.update(entry.meta)
    narrow.outputs[0].shape, entry.shape = entry.shape, None
    entry.name = f"{name}.exact"
    graph.outputs[graph.outputs.index(entry)] = narrow.outputs[0]


def read_narrow_rings(model: ir.Model) -> None:
    """Let the operator read and write narrow rings itself.

    Before: a graph with the operator; narrow rings are widened before it, and its entries narrowed behind it.
    After: nothing stands between.
    """
    for node in model.graph:
        if node.op_type != ATTENTION:
            continue
        for at, output in _RINGS.items():
            widened = made_by(node.inputs[at], "Cast")
            ring = None if widened is None else widened.inputs[0]
            if ring is None or not ring.is_graph_input():
                continue
            node.replace_input_with(at, ring)
            entry = node.outputs[output]
            entry.type = ring.type
            for use in list(entry.uses()):
                if use.node.op_type == "Cast":
                    replace_value(use.node.outputs[0], entry)


def _cast(value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
    node = ir.node("Cast", [value], {"to": dtype.value})
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(dtype)
    return node
