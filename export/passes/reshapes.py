"""Moves that leave numbers in their order: reshapes, transposes there and back, axes of one place that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from edgemem.export.passes.values import constant, input_of, made_by

Axes = list[int | None]
"""For each axis of a value, its place in an earlier one; ``None``: it has one place, and is not an axis there."""


def drop_reshapes(model: ir.Model) -> None:
    """Let what comes out of moves as it went in be used as it went in; a split on the way is made where they begin.

    Before: a traced graph.
    After: such moves are unused.
    """
    splits: dict[tuple[ir.Node, ir.Value], ir.Node] = {}
    for node in list(model.graph):
        output = node.outputs[0]
        if not node.domain and node.op_type in _MOVES and not output.is_graph_output():
            same = _same_before(output, splits)
            if same is not None:
                ir.convenience.replace_all_uses_with(output, same)


def _same_before(output: ir.Value, splits: dict[tuple[ir.Node, ir.Value], ir.Node]) -> ir.Value | None:
    """The earliest value that is ``output`` too."""
    shape, found = _shape(output), None
    if shape is None:
        return None
    for value, axes in _earlier(output):
        sizes = _shape(value)
        if value is not output and sizes is not None and _keeps(axes, shape, sizes):
            found = value
    split = made_by(value, "Split")
    part = _shape(value)
    if split is None or part is None or split.inputs[0] is None:
        return found
    axis = _integer(split, "axis", 0) % len(part)
    for whole, moved in _earlier(split.inputs[0]):
        place, sizes = moved[axis], _shape(whole)
        if place is None or sizes is None or whole is split.inputs[0]:
            continue
        sizes[place] = part[axis]
        if _keeps([None if at is None else moved[at] for at in axes], shape, sizes):
            found = _split_there(split, whole, place, splits).outputs[list(split.outputs).index(value)]
    return found


def _earlier(value: ir.Value) -> Iterator[tuple[ir.Value, Axes]]:
    """A value, and those that it was before each move; with the places of its axes there."""
    shape = _shape(value)
    axes: Axes = list(range(len(shape or [])))
    while shape is not None:
        yield value, axes
        node = value.producer()
        if node is None or node.domain or node.op_type not in _MOVES:
            return
        step = _MOVES[node.op_type](node, shape)
        if step is None:
            return
        value, places = step
        axes, shape = [None if at is None else places[at] for at in axes], _shape(value)


def _keeps(axes: Axes, shape: list[Any], sizes: list[Any]) -> bool:
    """Whether a value of this shape is the same as one of these sizes, in which its axes have these places."""
    return shape == sizes and all(
        size == 1 or at == place for at, (place, size) in enumerate(zip(axes, shape, strict=True))
    )


def _split_there(
    split: ir.Node, whole: ir.Value, axis: int, splits: dict[tuple[ir.Node, ir.Value], ir.Node]
) -> ir.Node:
    """The same split of an earlier value."""
    if (split, whole) not in splits:
        attributes = [ir.AttrInt64("axis", axis)]
        attributes += [attribute for name, attribute in split.attributes.items() if name != "axis"]
        new = ir.Node("", "Split", [whole, *split.inputs[1:]], attributes, num_outputs=len(split.outputs))
        for old, value in zip(split.outputs, new.outputs, strict=True):
            value.name, value.type = f"{old.name}.{whole.name}", old.type
            sizes, part = _shape(whole), _shape(old)
            assert sizes is not None
            assert part is not None
            sizes[axis] = part[_integer(split, "axis", 0) % len(part)]
            value.meta["shape"] = ir.Shape(sizes)
        assert split.graph is not None
        split.graph.insert_before(split, new)
        splits[split, whole] = new
    return splits[split, whole]


Step = tuple[ir.Value, Axes] | None
"""The value that a move took, and the place in it of each axis of what the move gave."""


def _transpose(node: ir.Node, shape: list[Any]) -> Step:
    perm = node.attributes.get("perm")
    return None if perm is None or node.inputs[0] is None else (node.inputs[0], list(perm.as_ints()))


def _unsqueeze(node: ir.Node, shape: list[Any]) -> Step:
    axes = constant(input_of(node, 1))
    if axes is None or node.inputs[0] is None:
        return None
    new, places = {int(axis) % len(shape) for axis in axes.ravel()}, iter(range(len(shape)))
    return node.inputs[0], [None if at in new else next(places) for at in range(len(shape))]


def _squeeze(node: ir.Node, shape: list[Any]) -> Step:
    source, axes = node.inputs[0], constant(input_of(node, 1))
    sizes = _shape(source)
    if source is None or sizes is None or axes is None:
        return None
    gone = {int(axis) % len(sizes) for axis in axes.ravel()}
    return source, [at for at in range(len(sizes)) if at not in gone]


def _gather(node: ir.Node, shape: list[Any]) -> Step:
    """The only place of an axis, or the first of one along which all are equal."""
    source, index = node.inputs[0], constant(input_of(node, 1))
    sizes = _shape(source)
    if source is None or sizes is None or index is None or index.shape != () or index != 0:
        return None
    axis = _integer(node, "axis", 0) % len(sizes)
    places: Axes = [at for at in range(len(sizes)) if at != axis]
    wide = made_by(source, "Expand")
    narrow = input_of(wide, 0)
    before = _shape(narrow)
    if narrow is not None and before is not None and len(before) == len(sizes) and before[axis] == 1:
        sizes[axis] = 1
        return (narrow, places) if before == sizes else None
    return (source, places) if sizes[axis] == 1 else None


def _reshape(node: ir.Node, shape: list[Any]) -> Step:
    """One that only makes or removes axes of one place, or several that come to that."""
    source = node.inputs[0]
    while source is not None and (sizes := _shape(source)) is not None:
        kept = [at for at, size in enumerate(sizes) if size != 1]
        if [sizes[at] for at in kept] == [size for size in shape if size != 1] or len(sizes) == len(shape) == 1:
            places = iter(kept if len(shape) > 1 else [0])
            return source, [None if size == 1 and len(shape) > 1 else next(places) for size in shape]
        source = input_of(made_by(source, "Reshape"), 0)
    return None


_MOVES = {
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "Reshape": _reshape,
}


def _shape(value: ir.Value | None) -> list[Any] | None:
    found = None if value is None else value.meta.get("shape") or value.shape
    return None if found is None else list(found)


def _integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()
