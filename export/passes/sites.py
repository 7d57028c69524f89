"""Attention over memories as one operator, between the marks of :mod:`edgemem.memories.site`."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from edgemem.export.passes.values import replace_value
from edgemem.memories.site import BEGIN, DOMAIN, END

ATTENTION = "MemoryAttention"


def remove_sites(model: ir.Model) -> None:
    """Take the marks out: the standard form.

    Before: a traced graph.
    After: no mark, and nothing that only a mark used.
    """
    is_marked = False
    for graph in model.graphs():
        for node in [node for node in graph if _is_mark(node)]:
            is_marked = True
            given, output = node.inputs[0], node.outputs[0]
            assert given is not None
            ir.convenience.replace_all_uses_with(output, given)
            graph.remove(node, safe=True)
    if is_marked:
        remove_dead(model)


def fill_sites(model: ir.Model) -> None:
    """Put the operator in the place of what lies between marks.

    Before: a traced graph.
    After: what lay between is unused, except for what is used elsewhere too; marks are still there.
    """
    for begin, end in list(_sites(model.graph)):
        _replace(model.graph, begin, end)


def _is_mark(node: ir.Node) -> bool:
    return node.domain == DOMAIN and node.op_type in (BEGIN, END)


def _sites(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Node]]:
    """The two marks of each site; sites do not overlap."""
    begin: ir.Node | None = None
    for node in graph:
        if _is_mark(node):
            if node.op_type == BEGIN:
                begin = node
            elif begin is not None:
                yield begin, node
                begin = None


def _replace(graph: ir.Graph, begin: ir.Node, end: ir.Node) -> None:
    """Put the operator in the place of what lies between the marks."""
    inputs = list(begin.inputs)
    attributes = list(begin.attributes.values())
    operator = ir.Node(DOMAIN, ATTENTION, inputs, attributes, num_outputs=len(end.inputs), version=1)
    graph.insert_before(end, operator)
    for old, new in zip(end.inputs, operator.outputs, strict=True):
        assert old is not None
        if old not in inputs:
            replace_value(old, new)
            continue
        # An entry that comes ready: the operator gives it on, and needs it.
        readers = [use for use in old.uses() if use.node.domain == DOMAIN]
        replace_value(old, new)
        for use in readers:
            use.node.replace_input_with(use.idx, old)


def remove_dead(model: ir.Model) -> None:
    """Remove nodes, constants and domains that nothing uses."""
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
