"""A graph that needs no runtime of edgemem's: it writes its rings itself, and carries its position as a state.

Any host of ONNX files can drive it. Every tensor has the batch axis first,
then the time axis if it has one, and at least one axis after the batch. State ``s``
goes in as ``past.s`` and comes out as ``present.s``: the pairs stay together in sorted order too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.bundle import WEIGHTS, Bundle, GraphFile
from edgemem.contract import OUTPUT_INDICES, POSITION, InputSpec, Sizes, StateSpec, TensorSpec, initial_state
from edgemem.dtypes import numpy_dtype
from edgemem.errors import ExportError
from edgemem.triton.ports import Port, Ports, StatePort

MODEL = "model.onnx"
PAST, PRESENT = "past", "present"


def whole_graph(bundle: Bundle, max_batch: int) -> tuple[ir.Model, Ports]:
    """The graph of a bundle's steps, made whole; its weights stay in the bundle's file.

    Args:
        bundle: The bundle.
        max_batch: Most streams in one call.

    Raises:
        ExportError: A state grows, the runtime computes something before or after the graph, or the graph computes
            in bfloat16.
    """
    contract, graph = bundle.contract, bundle.graph_for(1)
    assert graph is not None  # a manifest has one that takes one step
    ends = [spec.name for spec in contract.data if spec.front_end is not None]
    ends += [spec.name for spec in contract.output_specs if spec.back_end is not None]
    if ends:
        raise ExportError(f"edgemem's runtime frames or transforms {', '.join(ends)} outside the graph.")
    if not contract.has_fixed_size:
        raise ExportError("the state grows with the position, so no server can hold it.")
    if bundle.manifest.precision.dtype == "bfloat16":
        raise ExportError("ONNX Runtime does not compute bfloat16 on a CPU, so the graph could not be compared.")
    return _Whole(bundle, graph, max_batch).made()


def write_whole_graph(model: ir.Model, bundle: Bundle, folder: Path) -> None:
    """Write a whole graph and the weights that it reads from the bundle."""
    ir.save(model, folder / MODEL)
    bundle.copy_to(folder, {WEIGHTS} & bundle.manifest.files.keys())


class _Whole:
    """The graph on its way."""

    def __init__(self, bundle: Bundle, graph: GraphFile, max_batch: int) -> None:
        self.contract, self.graph = bundle.contract, graph
        self.model = ir.load(bundle.file(graph.file))
        self.nodes = self.model.graph
        self.batched = self.contract.has_batches
        self.max_batch = max_batch if self.batched else 1
        self.old_inputs = {value.name: value for value in self.nodes.inputs}
        self.old_outputs = {value.name: value for value in self.nodes.outputs}
        self.inputs: dict[str, ir.Value] = {}
        self.outputs: dict[str, ir.Value] = {}
        self.slots: dict[int, ir.Value] = {}

    def made(self) -> tuple[ir.Model, Ports]:
        """The graph and its tensors."""
        given, positions, states = [], list[StatePort](), list[StatePort]()
        wanted = {tensor.spec: tensor for tensor in self.contract.outputs(self.graph) if tensor.role == "state"}
        for tensor in self.contract.inputs(self.graph):
            if tensor.role == "fixed":
                assert isinstance(tensor.spec, InputSpec)
                self._replace(tensor.name, self._constant(np.asarray(tensor.spec.value, numpy_dtype(tensor.dtype))))
            elif tensor.role in ("data", "held"):
                given.append(self._input(tensor, tensor.name))
        for tensor in self.contract.inputs(self.graph):
            if tensor.role == "position":
                positions.append(self._position(tensor))
            elif tensor.role == "output_indices":
                self._replace(OUTPUT_INDICES, self._op("Sub", self._steps(), self._constant([1])))
            elif isinstance(tensor.spec, StateSpec):
                states.append(self._state(tensor, wanted[tensor.spec]))
        results = [
            self._output(tensor, tensor.name, self.old_outputs[tensor.name])
            for tensor in self.contract.outputs(self.graph)
            if tensor.role == "output"
        ]
        self.nodes.inputs[:] = list(self.inputs.values())
        self.nodes.outputs[:] = list(self.outputs.values())
        for old in self.old_outputs.values():
            old.name = f"inner.{old.name}"
        for name, value in (*self.inputs.items(), *self.outputs.items()):
            value.name = name
        self.nodes.sort()
        ports = Ports(tuple(given), tuple(results), (*positions, *states), self.max_batch)
        return self.model, ports

    # Inputs ------------------------------------------------------------------------------------------------------

    def _input(self, tensor: TensorSpec, name: str) -> Port:
        """A new input with the batch first, in place of an old one."""
        port, order, is_scalar = self._port(tensor, name)
        value = self._new_input(port)
        if is_scalar:
            value = self._op("Squeeze", value, self._constant([1]))
        value = self._op("Transpose", value, perm=_inverse(order)) if order != sorted(order) else value
        if tensor.batch_axis is None:
            value = self._op("Squeeze", value, self._constant([0]))
        self._replace(tensor.name, value)
        return port

    def _new_input(self, port: Port) -> ir.Value:
        value = ir.Value(
            type=ir.TensorType(ir.DataType(port.onnx_dtype)),
            shape=ir.Shape([self._batch, *(f"{port.name}.{at}" if n < 0 else n for at, n in enumerate(port.dims))]),
        )
        self.inputs[port.name] = value
        return value

    def _replace(self, name: str, value: ir.Value) -> None:
        old = self.old_inputs[name]
        old.replace_all_uses_with(value)
        self.old_inputs[name] = value

    def _position(self, tensor: TensorSpec) -> StatePort:
        """The position as a state ``[B, 1]``: int64 steps."""
        port = Port(f"{PAST}.{POSITION}", tensor.dtype, (1,))
        value = self._new_input(port)
        self.position = value
        self._replace(tensor.name, self._op("Squeeze", value, self._constant([1])))
        present = self._give(Port(f"{PRESENT}.{POSITION}", tensor.dtype, (1,)), self._op("Add", value, self._steps()))
        return StatePort(port, present, np.zeros(1, np.int64))

    def _steps(self) -> ir.Value:
        """Steps of the call, int64 ``[1]``."""
        spec = self.contract.input
        if self.graph.min_time == self.graph.max_time or spec.time_axis is None:
            return self._constant([self.graph.max_time])
        axis = spec.time_axis
        count = self._op("Shape", self.old_inputs[spec.name], start=axis, end=axis + 1)
        return count if spec.takes == 1 else self._op("Div", count, self._constant([spec.takes]))

    # Outputs -----------------------------------------------------------------------------------------------------

    def _state(self, past: TensorSpec, present: TensorSpec) -> StatePort:
        """A state: its new value is an output, with the ring written where there is one."""
        assert isinstance(past.spec, StateSpec)
        state = past.spec
        port = self._input(past, f"{PAST}.{state.name}")
        new = self.old_outputs[present.name]
        if state.update == "append":
            new = self._written(self.old_inputs[past.name], new, state)
        given = self._output(past, f"{PRESENT}.{state.name}", new)
        return StatePort(port, given, initial_state(state, 1).reshape(port.dims))

    def _written(self, ring: ir.Value, entries: ir.Value, state: StateSpec) -> ir.Value:
        """The ring with the call's entries: entry ``t`` in slot ``(position + t) mod W``; the last ``W`` of them."""
        window = state.window
        assert window is not None
        if window not in self.slots:
            steps = self._op("Squeeze", self._steps(), self._constant([0]))
            times = self._op("Range", self._constant(0), steps, self._constant(1))
            places = self._op("Mod", self._op("Add", self.position, times), self._constant([window]))  # [B, T]
            places = self._last(places, window, axis=1)
            self.slots[window] = self._op("Unsqueeze", places, self._constant([1, 3]))  # [B, 1, T, 1]
        entries = self._last(entries, window, axis=2)
        places = self._op("Expand", self.slots[window], self._op("Shape", entries))
        return self._op("ScatterElements", ring, places, entries, axis=2)

    def _last(self, value: ir.Value, count: int, axis: int) -> ir.Value:
        if self.graph.max_time <= count:
            return value
        ends = (self._constant([-count]), self._constant([np.iinfo(np.int64).max]), self._constant([axis]))
        return self._op("Slice", value, *ends)

    def _output(self, tensor: TensorSpec, name: str, value: ir.Value) -> Port:
        """A new output with the batch first."""
        port, order, is_scalar = self._port(tensor, name)
        if tensor.batch_axis is None:
            value = self._op("Unsqueeze", value, self._constant([0]))
        value = self._op("Transpose", value, perm=order) if order != sorted(order) else value
        if is_scalar:
            value = self._op("Unsqueeze", value, self._constant([1]))
        return self._give(port, value)

    def _give(self, port: Port, value: ir.Value) -> Port:
        given = self._op("Identity", value)  # a value of its own, whatever else it is
        given.type = ir.TensorType(ir.DataType(port.onnx_dtype))
        given.shape = ir.Shape([self._batch, *(f"{port.name}.{at}" if n < 0 else n for at, n in enumerate(port.dims))])
        self.outputs[port.name] = given
        return port

    # Parts -------------------------------------------------------------------------------------------------------

    @property
    def _batch(self) -> str | int:
        return "batch" if self.batched else 1

    def _port(self, tensor: TensorSpec, name: str) -> tuple[Port, list[int], bool]:
        """The port of a tensor; the order of its axes there (batch, time, others); whether it is one number."""
        free = Sizes(batch=1, time=self.graph.max_time, selected=1)
        sizes = [
            axis if isinstance(axis, int) else -1 if axis.only is None and axis.kind == "time" else axis.size(free)
            for axis in tensor.axes
        ]
        leading = [tensor.batch_axis, tensor.time_axis if tensor.role in ("data", "output") else None]
        order = [axis for axis in leading if axis is not None]
        order += [index for index in range(len(sizes)) if index not in order]
        if tensor.batch_axis is None:  # one of size 1 is put in front
            sizes, order = [1, *sizes], [0, *(index + 1 for index in order)]
        dims = tuple(sizes[index] for index in order[1:])
        return Port(name, tensor.dtype, dims or (1,)), order, not dims

    def _op(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(kind, list(inputs), attributes)
        self.nodes.append(node)
        return node.outputs[0]

    def _constant(self, value: Any) -> ir.Value:
        array = value if isinstance(value, np.ndarray) else np.asarray(value, np.int64)
        node = ir.node("Constant", [], {"value": ir.tensor(array)})
        self.nodes.append(node)
        return node.outputs[0]


def _inverse(order: list[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
