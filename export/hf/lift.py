"""The graph of one step, run over the time steps of a chunk by one ONNX Scan.

The body of the Scan is the step's graph, so a chunk is bit-equal to stepping. The nodes that depend on
``output_indices`` (the output layer) stay outside if they can: they run once, for the wanted time steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgemem.contract import OUTPUT_INDICES, POSITION, Contract

_TIME = "time"


def lift(step: ir.Model, contract: Contract) -> ir.Model:
    """A model of the same contract that takes any number of time steps.

    Before: a graph of one step, in which every state is replaced.
    After: the graph is a Scan over the time steps, and the nodes that depend on ``output_indices``.

    Args:
        step: The graph of one step. It does not change; the new model shares its tensors.
        contract: The contract of the graph.
    """
    model = step.clone()
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    data, logits = inputs[contract.input.name], outputs[contract.output.name]
    outside, rows = _outside(graph, inputs[OUTPUT_INDICES]) if contract.output_indices else ([], None)
    if contract.output_indices and not outside:  # the output layer cannot be separated: it runs at every step
        _replace(inputs[OUTPUT_INDICES], _constant(graph, "step.only", np.zeros(1, np.int64)))
    scanned = rows or logits  # [B, 1, ...] in the body
    carried = [inputs[spec.input_name] for spec in contract]
    if contract.position == "input":
        carried.append(inputs[POSITION])
    ends = [outputs[spec.output_name] for spec in contract]
    graph.outputs.clear()
    scan = _scan(graph, carried, ends, data, scanned, outside)
    for spec, value in zip(contract.states, scan.outputs, strict=False):
        value.name = spec.output_name
    if contract.position == "input":
        scan.outputs[-2].name = "position.after"
    logits = _around(graph, scan, outside, scanned, logits, inputs.get(OUTPUT_INDICES))
    logits.name = contract.output.name
    graph.outputs.extend([logits, *scan.outputs[: len(contract.states)]])
    _free_time(graph, contract, step)
    return model


def _scan(
    graph: ir.Graph,
    carried: Sequence[ir.Value],
    ends: Sequence[ir.Value],
    data: ir.Value,
    scanned: ir.Value,
    outside: Sequence[ir.Node],
) -> ir.Node:
    """Move the step's nodes into the body of a Scan.

    Args:
        graph: The graph of the step; the nodes are taken out of it.
        carried: Its states, and the position if it has one: the last then has no end.
        ends: The new values of the states.
        data: Its data input ``[B, 1, ...]``.
        scanned: What is collected from every step ``[B, 1, ...]``.
        outside: The nodes that stay outside.

    Returns:
        The Scan, in no graph yet. Its outputs are the last states, the position and the collected values.
    """
    slots = [_like(value, f"body.{value.name}") for value in carried]
    token = ir.Value(name="body.data", type=data.type, shape=_without(data.shape, 1))
    axis = _constant(graph, "body.time_axis", np.array([1], np.int64))
    wide = ir.node("Unsqueeze", [token, axis])
    narrow = ir.node("Squeeze", [scanned, axis])
    inside = [node for node in graph if node not in set(outside)]
    for value, slot in zip(carried, slots, strict=True):
        _replace(value, slot)
    _replace(data, wide.outputs[0])
    nodes, ends = [wide, *inside, narrow], list(ends)
    if len(ends) < len(carried):
        advance = ir.node("Add", [slots[-1], _constant(graph, "body.one", np.array([1], np.int64))])
        nodes.append(advance)
        ends.append(advance.outputs[0])
    for end in ends:
        end.name = f"body.{end.name}" if end.name else None
    graph.remove(inside)
    for number, node in enumerate(nodes):
        for value in node.outputs:
            value.name = value.name or f"body.value_{number}"
    body = ir.Graph([*slots, token], [*ends, narrow.outputs[0]], nodes=nodes, name="one_step")
    return ir.node(
        "Scan",
        [*carried, data],
        {"body": body, "num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]},
        num_outputs=len(ends) + 1,
    )


def _around(
    graph: ir.Graph,
    scan: ir.Node,
    outside: Sequence[ir.Node],
    scanned: ir.Value,
    logits: ir.Value,
    indices: ir.Value | None,
) -> ir.Value:
    """Put a Scan into the graph, and compute the output from what it collected.

    Args:
        graph: The graph, in which only ``outside`` is left.
        scan: The Scan.
        outside: The nodes that compute the output; if there are none, the Scan collects the output itself.
        scanned: The value of the step that the Scan collects.
        logits: The output of ``outside``.
        indices: The input ``output_indices``, if there is one.

    Returns:
        The output.
    """
    stacked = scan.outputs[-1]
    stacked.name = "stacked"
    for node in outside:
        for index, given in enumerate(node.inputs):
            if given is scanned:
                node.replace_input_with(index, stacked)
    if outside:
        graph.insert_before(outside[0], scan)
        return logits
    graph.append(scan)
    if indices is None:
        return stacked
    pick = ir.node("Gather", [stacked, indices], {"axis": 1})
    graph.append(pick)
    return pick.outputs[0]


def unseal(model: ir.Model, sealed: Contract, contract: Contract) -> None:
    """Let a graph that writes its rings itself output only their new entries, as its open contract wants.

    Before: a graph of the sealed contract, in which the position is a state.
    After: a graph of the open contract: rings are appended to, the position is an input.

    Args:
        model: The graph; changed in place.
        sealed: The sealed contract.
        contract: The open contract.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    position = inputs[sealed[POSITION].input_name]
    position.name = POSITION
    positions = _positions(graph, inputs[contract.input.name], position)
    final = [outputs[contract.output.name]]
    for spec in contract:
        value = outputs[sealed[spec.name].output_name]
        if spec.window is not None:
            value.name = f"ring.{spec.name}"
            heads, _, width = spec.fixed_shape
            value = _entries(graph, value, positions, spec.window, (heads, width), spec.name)
            value.name = spec.output_name
        final.append(value)
    graph.outputs.clear()
    graph.outputs.extend(final)
    order = {value.name: value for value in graph.inputs}
    graph.inputs.clear()
    graph.inputs.extend(order[name] for name in contract.graph_inputs)


def _positions(graph: ir.Graph, data: ir.Value, position: ir.Value) -> ir.Value:
    """The positions ``[B, T]`` of the time steps of ``data`` [B, T, ...], of which ``position`` [B] is the first."""
    shape = _add(graph, "Shape", data, start=0, end=2)  # [B, T]
    time = _add(graph, "Gather", shape, _unsealing(graph, "time_index", np.array(1, np.int64)), axis=0)
    zero, one = (_unsealing(graph, str(n), np.array(n, np.int64)) for n in (0, 1))
    ages = _add(graph, "Range", zero, time, one)  # [T]
    column = _add(graph, "Unsqueeze", position, _unsealing(graph, "last", np.array([1], np.int64)))
    return _add(graph, "Add", column, ages)


def _entries(
    graph: ir.Graph, ring: ir.Value, positions: ir.Value, window: int, sizes: tuple[int, int], name: str
) -> ir.Value:
    """The entries ``[B, H, T, D]`` at some positions of a ring ``[B, H, window, D]``; ``sizes`` are H and D."""

    def numbers(what: str, *values: int) -> ir.Value:
        return _unsealing(graph, f"{what}_{name}", np.array(values, np.int64))

    heads, width = sizes
    slots = _add(graph, "Mod", positions, numbers("window", window))
    slots = _add(graph, "Unsqueeze", slots, numbers("axes", 1, 3))  # [B, 1, T, 1]
    spread = _add(graph, "Expand", slots, numbers("spread", 1, heads, 1, width))
    entries = _add(graph, "GatherElements", ring, spread, axis=2)
    entries.type = ring.type
    entries.shape = ir.Shape([ir.SymbolicDim("batch"), heads, ir.SymbolicDim(_TIME), width])
    return entries


def _add(graph: ir.Graph, op: str, *given: ir.Value, **attributes: int) -> ir.Value:
    """Append a node; its output."""
    node = ir.node(op, list(given), attributes)
    graph.append(node)
    node.outputs[0].name = f"unseal.{op}_{len(graph)}"
    return node.outputs[0]


def _unsealing(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Value:
    return _constant(graph, f"unseal.{name}", array)


def _outside(graph: ir.Graph, indices: ir.Value) -> tuple[list[ir.Node], ir.Value | None]:
    """The nodes that depend on ``output_indices``, in order, and the value ``[B, 1, ...]`` from which they take rows.

    No nodes if they use anything else that the step computes: then they cannot be separated from it.
    """
    reached: set[ir.Value | None] = {indices}
    nodes: list[ir.Node] = []
    for node in graph:
        if any(value in reached for value in node.inputs):
            nodes.append(node)
            reached.update(node.outputs)
    entering = {value for node in nodes for value in node.inputs if value is not None and value not in reached}
    computed = [value for value in entering if not value.is_initializer()]
    if len(computed) != 1:
        return [], None
    (rows,) = computed
    takers = [node for node in nodes if rows in node.inputs]
    along_time = all(
        node.op_type == "Gather" and node.inputs[0] is rows and node.attributes["axis"].as_int() == 1 for node in takers
    )
    return (nodes, rows) if along_time else ([], None)


def _replace(value: ir.Value, by: ir.Value) -> None:
    for node, index in tuple(value.uses()):
        node.replace_input_with(index, by)


def _constant(graph: ir.Graph, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def _like(value: ir.Value, name: str) -> ir.Value:
    return ir.Value(name=name, type=value.type, shape=value.shape)


def _without(shape: ir.Shape | None, axis: int) -> ir.Shape | None:
    return None if shape is None else ir.Shape([size for index, size in enumerate(shape) if index != axis])


def _free_time(graph: ir.Graph, contract: Contract, step: ir.Model) -> None:
    """Give inputs and outputs the shapes of the step, with a dynamic time axis."""
    shapes = {value.name: value.shape for value in (*step.graph.inputs, *step.graph.outputs)}
    timed = {contract.input.name} | ({contract.output.name} if not contract.output_indices else set())
    dtypes = {value.name: value.type for value in (*step.graph.inputs, *step.graph.outputs)}
    for value in (*graph.inputs, *graph.outputs):
        shape, value.type = shapes[value.name], dtypes[value.name]
        assert shape is not None
        sizes = list(shape)
        if value.name in timed:
            sizes[1] = ir.SymbolicDim(_TIME)
        value.shape = ir.Shape(sizes)
