"""Fixed inputs and what follows from them become constants; ``If`` with a constant condition becomes its branch.

A value that follows from constants and from the shapes of tensors alone is computed at several numbers of streams and
steps. Where it is always the same, it is a constant. The operators that compute the outputs stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftSubgraphInitializersToMainGraphPass, NameFixPass, RemoveUnusedNodesPass

from edgemem.adopt.session import Graph

Array = NDArray[Any]
_MOST_ROUNDS = 50
_SHAPES, _RANDOM = ("Shape", "Size"), ("Random", "Bernoulli", "Multinomial")
_MOVES = {"Constant", "Identity", "Unsqueeze", "Squeeze", "Concat", "Slice", "Split", "Transpose", "Reshape", "Gather"}
"""Operators that give numbers as they are: what follows from weights through these alone is a weight too."""
_SIZED_BY_VALUES = {"NonZero", "Compress", "Unique", "NonMaxSuppression", "StringSplit", "SequenceMap", "If", "Loop"}
_SIZE_INPUTS = {
    **{name: (1,) for name in ("Reshape", "Expand", "Tile", "TopK", "OneHot", "Split", "SplitToSequence", "Upsample")},
    **{name: (1, 2, 3, 4) for name in ("Slice", "Pad", "Resize")},
    **{"ConstantOfShape": (0,), "Range": (0, 1, 2), "CenterCropPad": (1,)},
}
"""Operators whose output's size follows from values of these inputs."""


def fold(model: ir.Model, fixed: Mapping[str, Array], probes: Sequence[Mapping[str, Array]], folder: Path) -> ir.Model:
    """A copy of ``model`` without fixed inputs, and without the branches that are never taken.

    Before: a model that ONNX Runtime runs.
    After: ``fixed`` are no inputs; no ``If`` is left whose condition is the same in all probes; nothing is unused.

    Args:
        model: The model; not changed.
        fixed: Inputs that are constants.
        probes: Inputs of calls whose numbers of streams and steps differ: all that a bundle will offer.
        folder: Where its external data lie.
    """
    model = model.clone()
    for name, value in fixed.items():
        found = next(value for value in model.graph.inputs if value.name == name)
        model.graph.inputs.remove(found)
        _make_constant(model.graph, found, value)
    LiftSubgraphInitializersToMainGraphPass()(model)
    for _ in range(_MOST_ROUNDS):
        NameFixPass()(model)
        wanted, moved = _static_values(model.graph)
        constants = _same_in_all(model, wanted, moved, probes, folder) if wanted else {}
        for old, constant in constants.items():
            new = ir.Value(name=f"{old.name}.constant")
            _make_constant(model.graph, new, constant)
            old.replace_all_uses_with(new)
        if not _take_branches(model.graph):
            break
    forget_sizes(model)
    return RemoveUnusedNodesPass()(model).model


def _make_constant(graph: ir.Graph, value: ir.Value, array: Array) -> None:
    value.const_value = ir.tensor(array, name=value.name)
    value.dtype, value.shape = value.const_value.dtype, ir.Shape(array.shape)
    graph.initializers[value.name or ""] = value


def _static_values(graph: ir.Graph) -> tuple[list[ir.Value], set[ir.Value]]:
    """Values that follow from constants and shapes alone, at which what follows from data begins; and moved constants.

    The size of some values follows from data too, as that of ``NonZero``. Then so does what follows from the size.
    """
    static: set[ir.Value] = set(graph.initializers.values())
    moved = set(static)
    sized_by_data: set[ir.Value] = set()
    found: dict[ir.Value, None] = {}
    for node in graph:
        used = list(_used(node))
        if node.op_type in _MOVES and moved.issuperset(used):
            moved.update(node.outputs)
        moves = not sized_by_data.isdisjoint(used)
        is_shape = node.op_type in _SHAPES and not moves
        if is_shape or (all(v in static for v in used) and not node.op_type.startswith(_RANDOM)):
            static.update(node.outputs)
            continue
        sizes = [node.inputs[at] for at in _SIZE_INPUTS.get(node.op_type, ()) if at < len(node.inputs)]
        if moves or node.op_type in _SIZED_BY_VALUES or any(v is not None and v not in static for v in sizes):
            sized_by_data.update(node.outputs)
        for value in used:
            producer = value.producer()
            if value in static and producer is not None and producer.op_type != "Constant":
                found[value] = None
    return list(found), moved


def _used(node: ir.Node) -> Iterator[ir.Value]:
    """The values around a node that it uses, in its branches too."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graph = attribute.as_graph()
            made = {*graph.inputs, *graph.initializers.values()}
            for inner in graph:
                yield from (value for value in _used(inner) if value not in made)
                made.update(inner.outputs)
            yield from (value for value in graph.outputs if value not in made)


def _same_in_all(
    model: ir.Model,
    wanted: Sequence[ir.Value],
    moved: set[ir.Value],
    probes: Sequence[Mapping[str, Array]],
    folder: Path,
) -> dict[ir.Value, Array]:
    """Those of the wanted values that are whole numbers, flags or moved constants, the same in every probe."""
    part = model.clone()
    names = {value.name for value in wanted}
    values = {value.name: value for node in part.graph for value in node.outputs if value.name in names}
    part.graph.outputs[:] = [values[value.name] for value in wanted]
    RemoveUnusedNodesPass()(part)
    graph = Graph(part, "a part of the graph", folder)
    runs = [list(graph.run(probe).values()) for probe in probes]
    found = {}
    for value, results in zip(wanted, zip(*runs, strict=True), strict=True):
        first = results[0]
        is_size = isinstance(first, np.ndarray) and (first.dtype.kind in "iub" or value in moved)
        if is_size and all(np.array_equal(first, other) for other in results):
            found[value] = first
    return found


def _take_branches(graph: ir.Graph) -> bool:
    """Put the branch that is taken in the place of every ``If`` whose condition is constant; whether there was one."""
    changed = False
    for node in list(graph):
        if node.op_type != "If" or node.inputs[0] is None:
            continue
        condition = ir.convenience.get_const_tensor(node.inputs[0])
        if condition is None:
            continue
        branch = node.attributes["then_branch" if condition.numpy().reshape(-1)[0] else "else_branch"].as_graph()
        results = list(branch.outputs)
        branch.outputs.clear()
        inner = list(branch)
        branch.remove(inner)
        for made in inner:  # names of two branches may be the same
            for value in made.outputs:
                value.name = None
        graph.insert_before(node, inner)
        for old, new in zip(node.outputs, results, strict=True):
            if old.is_graph_output():
                kept = ir.node("Identity", [new])
                graph.insert_before(node, kept)
                new, name = kept.outputs[0], old.name
                old.name, new.name, new.type, new.shape = None, name, old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        for attribute in node.attributes.values():
            _empty(attribute.as_graph())  # what is not taken uses values of this graph no more
        graph.remove(node, safe=True)
        changed = True
    return changed


def _empty(graph: ir.Graph) -> None:
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _empty(attribute.as_graph())
    graph.outputs.clear()
    graph.remove(list(graph), safe=True)


def forget_sizes(model: ir.Model) -> None:
    """Forget the sizes that the file notes inside the graph: they may be those of a branch that is gone."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.shape = None
