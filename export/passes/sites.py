"""One operator in the place of what lies between the marks of :mod:`edgemem.memories.site`."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from edgemem.export.passes.products import add_initializer
from edgemem.export.passes.values import replace_value
from edgemem.memories.site import BEGIN, DOMAIN, END, OPERATOR, UNUSED, VIEW


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
    attributes = dict(begin.attributes)
    name = attributes.pop(OPERATOR)
    inputs = list(begin.inputs[1:])
    unused = end.attributes.get(UNUSED)
    operator = ir.Node(
        DOMAIN,
        name.as_string(),
        inputs,
        list(attributes.values()),
        num_outputs=len(end.inputs) + (0 if unused is None else unused.as_int()),
        version=1,
    )
    graph.insert_before(end, operator)
    for output in operator.outputs[len(end.inputs) :]:  # nothing else tells their type
        output.type = ir.TensorType(ir.DataType.FLOAT)
    outputs = [_viewed(operator.outputs[0], end), *operator.outputs[1 : len(end.inputs)]]
    for old, new in zip(end.inputs, outputs, strict=True):
        assert old is not None
        if old not in inputs:
            replace_value(old, new)
            continue
        # An entry that comes ready: the operator gives it on, and needs it.
        readers = [use for use in old.uses() if use.node.domain == DOMAIN]
        replace_value(old, new)
        for use in readers:
            use.node.replace_input_with(use.idx, old)


def _viewed(output: ir.Value, end: ir.Node) -> ir.Value:
    """What a mark's first input is to be replaced with: the operator's first output, in the shape that it has here."""
    view, old, graph = end.attributes.get(VIEW), end.inputs[0], end.graph
    if view is None:
        return output
    assert old is not None
    assert graph is not None
    shape = list(old.meta.get("shape") or old.shape or ())
    output.name, output.type = f"{old.name}.operator", old.type
    if view.as_string() == "steps_last":
        output.meta["shape"] = ir.Shape([shape[0], shape[2], shape[1]])
        node = ir.node("Transpose", [output], {"perm": [0, 2, 1]})
    else:
        sizes = [size if isinstance(size, int) else 0 for size in shape]  # streams and steps stay where they are
        target = add_initializer(graph, ir.tensor(np.array(sizes, np.int64), name=f"{old.name}.shape"))
        node = ir.node("Reshape", [output, target])
        wide = math.prod(size for size in sizes[1:] if size)
        output.meta["shape"] = ir.Shape([shape[0], 1 if isinstance(shape[1], int) else shape[1], wide])
    graph.insert_before(end, node)
    return node.outputs[0]


def remove_dead(model: ir.Model) -> None:
    """Remove nodes, constants and domains that nothing uses."""
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
