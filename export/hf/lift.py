"""The graph of one step, run over the time steps of a chunk by one ONNX Scan.

The body of the Scan is the step's graph as it is, so that a chunk is bit-equal to stepping. What depends on
``output_indices`` (the output layer) stays outside where it can: it runs once, for the wanted time steps.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgemem.contract import OUTPUT_INDICES, POSITION, Contract

_TIME = "time"


def lift(step: ir.Model, contract: Contract) -> ir.Model:
    """A model of the same contract that takes any number of time steps.

    Args:
        step: The graph of one step, in which every state is replaced. It is left as it is; tensors are shared.
        contract: What the graph keeps.
    """
    model = step.clone()
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    data, logits = inputs[contract.input.name], outputs[contract.output.name]

    outside, rows = _outside(graph, inputs[OUTPUT_INDICES]) if contract.output_indices else ([], None)
    if contract.output_indices and not outside:  # the output layer cannot be parted: let it run at every step
        _replace(inputs[OUTPUT_INDICES], _constant(graph, "step.only", np.zeros(1, np.int64)))
    scanned = rows or logits  # [B, 1, ...] in the body

    # The body: the step's nodes around inputs of its own.
    carried = [inputs[spec.input_name] for spec in contract]
    if contract.position == "input":
        carried.append(inputs[POSITION])
    ends = [outputs[spec.output_name] for spec in contract]
    slots = [_like(value, f"body.{value.name}") for value in carried]
    token = ir.Value(name="body.data", type=data.type, shape=_without(data.shape, 1))
    axis = _constant(graph, "body.time_axis", np.array([1], np.int64))
    wide = ir.node("Unsqueeze", [token, axis])
    narrow = ir.node("Squeeze", [scanned, axis])
    inside = [node for node in graph if node not in set(outside)]
    for value, slot in zip(carried, slots, strict=True):
        _replace(value, slot)
    _replace(data, wide.outputs[0])
    body_nodes = [wide, *inside, narrow]
    if contract.position == "input":
        one = _constant(graph, "body.one", np.array([1], np.int64))
        advance = ir.node("Add", [slots[-1], one])
        body_nodes.append(advance)
        ends.append(advance.outputs[0])
    for end in ends:
        end.name = f"body.{end.name}" if end.name else None
    graph.outputs.clear()
    graph.remove(inside)
    for number, node in enumerate(body_nodes):
        for value in node.outputs:
            value.name = value.name or f"body.value_{number}"
    body = ir.Graph([*slots, token], [*ends, narrow.outputs[0]], nodes=body_nodes, name="one_step")

    # Around it: the Scan, the output layer, and the names of the contract.
    scan = ir.node(
        "Scan",
        [*carried, data],
        {"body": body, "num_scan_inputs": 1, "scan_input_axes": [1], "scan_output_axes": [1]},
        num_outputs=len(ends) + 1,
    )
    for spec, value in zip(contract.states, scan.outputs, strict=False):
        value.name = spec.output_name
    if contract.position == "input":
        scan.outputs[-2].name = "position.after"
    stacked = scan.outputs[-1]
    stacked.name = "stacked"
    for node in outside:
        for index, given in enumerate(node.inputs):
            if given is scanned:
                node.replace_input_with(index, stacked)
    if outside:
        graph.insert_before(outside[0], scan)
    else:
        graph.append(scan)
        if contract.output_indices:
            pick = ir.node("Gather", [stacked, inputs[OUTPUT_INDICES]], {"axis": 1})
            graph.append(pick)
            logits = pick.outputs[0]
        else:
            logits = stacked
    logits.name = contract.output.name
    graph.outputs.extend([logits, *scan.outputs[: len(contract.states)]])
    _free_time(graph, contract, step)
    return model


def unseal(model: ir.Model, sealed: Contract, contract: Contract) -> None:
    """Let a graph that writes its rings itself put out the new entries alone, as its open contract says.

    Args:
        model: The graph of the sealed contract, in which the position is a state; changed in place.
        sealed: That contract.
        contract: The open one: rings are appended to, the position is an input.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    data = inputs[contract.input.name]
    position = inputs[sealed[POSITION].input_name]
    position.name = POSITION

    def add(op: str, *given: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(op, list(given), attributes)
        graph.append(node)
        node.outputs[0].name = f"unseal.{op}_{len(graph)}"
        return node.outputs[0]

    def whole(name: str, *numbers: int) -> ir.Value:
        return _constant(graph, f"unseal.{name}", np.array(numbers, np.int64))

    shape = add("Shape", data, start=0, end=2)  # [B, T]
    time = add("Gather", shape, _constant(graph, "unseal.time_index", np.array(1, np.int64)), axis=0)
    zero, one = (_constant(graph, f"unseal.{n}", np.array(n, np.int64)) for n in (0, 1))
    ages = add("Range", zero, time, one)  # [T]
    positions = add("Add", add("Unsqueeze", position, whole("last", 1)), ages)  # [B, T]
    by_name = {spec.output_name: outputs[spec.output_name] for spec in sealed}
    final = [outputs[contract.output.name]]
    for spec in contract:
        value = by_name[sealed[spec.name].output_name]
        if spec.window is not None:
            slots = add("Mod", positions, whole(f"window_{spec.name}", spec.window))
            slots = add("Unsqueeze", slots, whole(f"axes_{spec.name}", 1, 3))  # [B, 1, T, 1]
            heads, _, width = spec.fixed_shape
            spread = add("Expand", slots, whole(f"spread_{spec.name}", 1, heads, 1, width))
            value.name = f"ring.{spec.name}"
            entries = add("GatherElements", value, spread, axis=2)
            entries.name, entries.type = spec.output_name, value.type
            entries.shape = ir.Shape([ir.SymbolicDim("batch"), heads, ir.SymbolicDim(_TIME), width])
            value = entries
        final.append(value)
    graph.outputs.clear()
    graph.outputs.extend(final)
    order = {value.name: value for value in graph.inputs}
    graph.inputs.clear()
    graph.inputs.extend(order[name] for name in contract.graph_inputs)


def _outside(graph: ir.Graph, indices: ir.Value) -> tuple[list[ir.Node], ir.Value | None]:
    """The nodes that depend on ``output_indices``, in order, and the ``[B, 1, ...]`` of which they take rows.

    None where anything else that the step computes enters them: then they cannot be parted from it.
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
    """Give inputs and outputs their shapes: those of the step, with a free time axis."""
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
