"""Rings in fewer bits than the model computes in: ``--memory-dtype``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from edgemem.contract import Contract, StateSpec
from edgemem.dtypes import MemoryDType, element_type
from edgemem.errors import ExportError
from edgemem.export.passes.products import add_initializer
from edgemem.export.passes.values import replace_value
from edgemem.memories.site import ATTENTION, DOMAIN
from edgemem.streaming.narrow import LEAST_SCALE, narrow_contract, narrow_states

_STATES_FROM = 8  # among the operator's inputs
_RING, _ENTRY = "narrow ring", "narrow entry"
"""Notes on values: what is widened has the names of the graph's inputs, what is rounded those of its outputs."""


def narrow_rings(models: Sequence[ir.Model], contract: Contract, dtype: MemoryDType) -> Contract:
    """Store appended states in ``dtype``, and round every entry before anything reads it.

    Before: traced graphs that keep ``contract``; their rings are float32.
    After: the rings are ``dtype``; those of int8 have a scale for each slot, as one more state. A chunk reads its own
    entries as later calls will: rounded.

    Args:
        models: The graphs; changed in place.
        contract: Their contract.
        dtype: Of the rings.

    Returns:
        The contract that the graphs keep now.

    Raises:
        ExportError: There is no float32 ring.
    """
    rings = narrow_states(contract, dtype)
    if not rings:
        raise ExportError(
            "the model has no float32 ring that could be stored in fewer bits.",
            hint="Export without --memory-dtype. With --sealed, rings are inside the graph and stay as they are.",
        )
    for model in models:
        writer = _Writer(model.graph)
        for name, specs in rings.items():
            writer.narrow_input(contract[name].input_name, specs)
            writer.narrow_output(contract[name].output_name, specs)
    return narrow_contract(contract, rings)


class _Writer:
    """Narrows the rings of one graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._constants: dict[str, ir.Value] = {}

    def narrow_input(self, name: str, specs: tuple[StateSpec, ...]) -> None:
        ring = next(value for value in self.graph.inputs if value.name == name)
        uses, new, stored = list(ring.uses()), list[ir.Node](), [ring]
        if len(specs) > 1:
            assert ring.shape is not None
            stored.append(_value(specs[1].input_name, ir.DataType.FLOAT, [*ring.shape[:3], 1]))
            self.graph.inputs.insert(self.graph.inputs.index(ring) + 1, stored[1])
        wide = self._widened(*stored, then=_append_to(new))
        wide.name, wide.type = f"{name}.float32", ring.type
        wide.meta.update(ring.meta)
        wide.meta[_RING] = tuple(spec.input_name for spec in specs)
        for use in uses:
            use.node.replace_input_with(use.idx, wide)
        ring.type = ir.TensorType(_onnx(specs[0]))
        self.graph.insert_before(self.graph[0], new)

    def narrow_output(self, name: str, specs: tuple[StateSpec, ...]) -> None:
        entry = next(value for value in self.graph.outputs if value.name == name)
        maker = entry.producer()
        assert maker is not None
        # The operator rounds by itself: its marks keep what was not rounded.
        uses, new = [use for use in entry.uses() if use.node.domain != DOMAIN], list[ir.Node]()
        stored = self._rounded(entry, is_scaled=len(specs) > 1, dtype=_onnx(specs[0]), then=_append_to(new))
        wide = self._widened(*stored, then=_append_to(new))
        self.graph.insert_after(maker, new)
        for use in uses:
            use.node.replace_input_with(use.idx, wide)
        wide.meta.update(entry.meta)
        wide.name, entry.name = f"{name}.float32", f"{name}.exact"
        at = self.graph.outputs.index(entry)
        for value, spec in zip(stored, specs, strict=True):
            value.name, value.type = spec.output_name, ir.TensorType(_onnx(spec))
            if entry.shape is not None:
                value.shape = ir.Shape([*entry.shape[:3], spec.fixed_shape[2]])
        stored[0].meta[_ENTRY] = tuple(spec.output_name for spec in specs)
        entry.shape = None
        self.graph.outputs[at : at + 1] = stored

    def _rounded(self, entry: ir.Value, *, is_scaled: bool, dtype: ir.DataType, then: _Then) -> list[ir.Value]:
        """What is stored of an entry: numbers in fewer bits, or integers and the slot's scale."""
        if not is_scaled:
            return [then("Cast", [entry], {"to": dtype.value})]
        last = self._constant("last", np.array([-1]))
        most = then("ReduceMax", [then("Abs", [entry], {}), last], {"keepdims": 1})
        # A slot that is not finite gets the scale NaN, so that whoever reads it gets NaN too.
        poison = then("ReduceSum", [then("Mul", [entry, self._constant("nothing", np.float32(0))], {}), last], {})
        scale = then("Add", [then("Div", [most, self._constant("most", np.float32(127))], {}), poison], {})
        divisor = then("Max", [scale, self._constant("least", np.float32(LEAST_SCALE))], {})
        return [then("QuantizeLinear", [then("Div", [entry, divisor], {}), *self._one()], {}), scale]

    def _widened(self, stored: ir.Value, scale: ir.Value | None = None, *, then: _Then) -> ir.Value:
        if scale is None:
            return then("Cast", [stored], {"to": ir.DataType.FLOAT.value})
        return then("Mul", [then("DequantizeLinear", [stored, *self._one()], {}), scale], {})

    def _one(self) -> list[ir.Value]:
        """Scale and zero point of integers that mean themselves: TensorRT wants constants."""
        return [self._constant("one", np.float32(1)), self._constant("zero", np.int8(0))]

    def _constant(self, name: str, value: np.generic | np.ndarray) -> ir.Value:
        if name not in self._constants:
            self._constants[name] = add_initializer(self.graph, ir.tensor(np.asarray(value), name=f"rings.{name}"))
        return self._constants[name]


_Then = Callable[[str, list[ir.Value], dict[str, int]], ir.Value]


def _append_to(nodes: list[ir.Node]) -> _Then:
    def then(op_type: str, inputs: list[ir.Value], attributes: dict[str, int]) -> ir.Value:
        node = ir.node(op_type, inputs, attributes)
        node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        nodes.append(node)
        return node.outputs[0]

    return then


def _onnx(spec: StateSpec) -> ir.DataType:
    return ir.DataType(element_type(spec.dtype).onnx)


def _value(name: str, dtype: ir.DataType, shape: list[int | ir.SymbolicDim]) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def read_narrow_rings(model: ir.Model) -> None:
    """Let the operator read and write narrow rings itself.

    Before: a graph with the operator; narrow rings are widened before it, and its entries rounded behind it.
    After: nothing stands between.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    for node in [node for node in graph if node.op_type == ATTENTION]:
        given = list(node.inputs[:_STATES_FROM])
        for value in node.inputs[_STATES_FROM:]:
            names = () if value is None else value.meta.get(_RING, ())
            given.extend([inputs[name] for name in names] or [value])
        written = {_origin(value, node): value.meta[_ENTRY] for value in graph.outputs if _ENTRY in value.meta}
        if given == list(node.inputs):
            continue
        names = [written.get(value, ("",)) for value in node.outputs]
        operator = ir.Node(
            node.domain, node.op_type, given, [*node.attributes.values()], num_outputs=sum(map(len, names)), version=1
        )
        graph.insert_before(node, operator)
        rest = iter(operator.outputs)
        for old, stored in zip(node.outputs, names, strict=True):
            for name in stored:
                replace_value(next(v for v in graph.outputs if v.name == name) if name else old, next(rest))


def _origin(value: ir.Value, node: ir.Node) -> ir.Value | None:
    """The output of a node that a value was made from by way of first inputs."""
    found: ir.Value | None = value
    while found is not None and found.producer() is not node:
        maker = found.producer()
        found = None if maker is None or not maker.inputs else maker.inputs[0]
    return found
