"""One step of an LSTM or a GRU as matrix products, which every compiler takes: TensorRT makes a loop of the operator.

For a step ``x``, with ``h`` and ``c`` from the step before, the ONNX operators compute::

    LSTM   i, o, f, g = x Wᵀ + h Rᵀ + Wb + Rb     c' = σ(f) c + σ(i) tanh(g)     h' = σ(o) tanh(c')
    GRU    z, r = σ(x Wᵀ + h Rᵀ + Wb + Rb)        n = tanh(x Wnᵀ + Wbn + r (h Rnᵀ + Rbn))     h' = (1 - z) n + z h
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import NameFixPass, RemoveUnusedNodesPass

from edgemem.adopt.session import Graph

Array = NDArray[Any]
_W, _R, _B, _LENGTHS, _H, _C, _P = 1, 2, 3, 4, 5, 6, 7
_GATES = {"LSTM": 4, "GRU": 3}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"]}


def unroll(model: ir.Model, probes: Sequence[Mapping[str, Array]], folder: Path) -> int:
    """Replace recurrent operators whose sequences have one step in all probes.

    Before: a model that ONNX Runtime runs.
    After: such operators of one direction, with the usual activations, are products; nothing else changes.

    Args:
        model: The model; changed in place.
        probes: Inputs of calls of all sizes that a bundle will offer.
        folder: Where its external data lie.

    Returns:
        The number of operators that were replaced.
    """
    NameFixPass()(model)
    found = [node for node in model.graph if node.op_type in _GATES and _is_usual(node)]
    single = _single_steps(model, found, probes, folder)
    for node in single:
        _Step(model.graph, node).write()
    RemoveUnusedNodesPass()(model)
    return len(single)


def _is_usual(node: ir.Node) -> bool:
    """One direction, the usual activations, constant weights, a state, and no option that changes the formula."""
    attributes = node.attributes
    activations = attributes["activations"].as_strings() if "activations" in attributes else []
    constant = [_constant(node, at) for at in (_W, _R)]
    bias = node.inputs[_B] if len(node.inputs) > _B else None
    return (
        all(value is not None for value in constant)
        and (bias is None or _constant(node, _B) is not None)
        and attributes.get_string("direction", "forward") == "forward"
        and [name for name in activations if name] in ([], _USUAL[node.op_type])
        and not attributes.get_int("layout", 0)
        and not attributes.get_int("input_forget", 0)
        and "clip" not in attributes
        and all(at >= len(node.inputs) or node.inputs[at] is None for at in (_LENGTHS, _P))
        and (node.op_type == "GRU" or _at(node, _C) is not None)
        and _at(node, _H) is not None
    )


def _at(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _constant(node: ir.Node, index: int) -> Array | None:
    value = _at(node, index)
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else np.asarray(tensor.numpy())


def _single_steps(
    model: ir.Model, nodes: Sequence[ir.Node], probes: Sequence[Mapping[str, Array]], folder: Path
) -> list[ir.Node]:
    """Those whose sequences have one step in every probe."""
    wanted = {node.inputs[0].name for node in nodes if node.inputs[0] is not None and node.inputs[0].producer()}
    part = model.clone()
    made = {value.name: value for node in part.graph for value in node.outputs if value.name in wanted}
    given = {value.name for value in model.graph.inputs}
    part.graph.outputs[:] = list(made.values())
    RemoveUnusedNodesPass()(part)
    graph = Graph(part, "a part of the graph", folder) if made else None
    lengths: dict[str, set[int]] = {}
    for probe in probes:
        for name, value in {**probe, **(graph.run(probe) if graph else {})}.items():
            lengths.setdefault(name, set()).add(value.shape[0] if value.ndim else 0)
    names = {node: node.inputs[0].name for node in nodes if node.inputs[0] is not None}
    return [node for node, name in names.items() if name in wanted | given and lengths.get(name or "") == {1}]


class _Step:
    """Writes the products in the place of one operator.

    Args:
        graph: The graph.
        node: The operator.
    """

    def __init__(self, graph: ir.Graph, node: ir.Node) -> None:
        self._graph, self._node = graph, node
        self._opset = graph.opset_imports.get("", 0) or 0
        w, r, b = (_constant(node, at) for at in (_W, _R, _B))
        assert w is not None
        assert r is not None
        self._w, self._r = w[0], r[0]
        self._size = self._r.shape[1]
        gates = _GATES[node.op_type]
        bias = np.zeros(2 * gates * self._size, w.dtype) if b is None else b[0]
        self._wb, self._rb = bias[: gates * self._size], bias[gates * self._size :]

    def write(self) -> None:
        """Write them, and remove the operator."""
        node = self._node
        x = self._reshaped(node.inputs[0], [-1, self._w.shape[1]])
        h = self._reshaped(node.inputs[_H], [-1, self._size])
        if node.op_type == "LSTM":
            c = self._reshaped(node.inputs[_C], [-1, self._size])
            new_h, new_c = self._lstm(x, h, c)
            results = [(new_h, [1, 1, -1, self._size]), (new_h, [1, -1, self._size]), (new_c, [1, -1, self._size])]
        else:
            new_h = self._gru(x, h)
            results = [(new_h, [1, 1, -1, self._size]), (new_h, [1, -1, self._size])]
        for old, (value, shape) in zip(node.outputs, results, strict=False):
            new = self._reshaped(value, shape)
            new.type = old.type
            if old.is_graph_output():
                old.name, new.name = None, old.name
            old.replace_all_uses_with(new, replace_graph_outputs=True)
        self._graph.remove(node, safe=True)

    def _lstm(self, x: ir.Value, h: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value]:
        both = self("Concat", x, h, axis=1)
        weights = self._stored(np.concatenate([self._w, self._r], axis=1).T)
        i, o, f, g = self._split(self("Gemm", both, weights, self._stored(self._wb + self._rb)), 4)
        kept = self("Mul", self("Sigmoid", f), c)
        new_c = self("Add", kept, self("Mul", self("Sigmoid", i), self("Tanh", g)))
        return self("Mul", self("Sigmoid", o), self("Tanh", new_c)), new_c

    def _gru(self, x: ir.Value, h: ir.Value) -> ir.Value:
        size, resets_after = self._size, self._node.attributes.get_int("linear_before_reset", 0)
        xz, xr, xn = self._split(self("Gemm", x, self._stored(self._w.T), self._stored(self._wb)), 3)
        cut = 3 * size if resets_after else 2 * size
        parts = self._split(self("Gemm", h, self._stored(self._r[:cut].T), self._stored(self._rb[:cut])), cut // size)
        z, r = self("Sigmoid", self("Add", xz, parts[0])), self("Sigmoid", self("Add", xr, parts[1]))
        if resets_after:
            inner = self("Mul", r, parts[2])
        else:
            inner = self("Gemm", self("Mul", r, h), self._stored(self._r[cut:].T), self._stored(self._rb[cut:]))
        n = self("Tanh", self("Add", xn, inner))
        return self("Add", n, self("Mul", z, self("Sub", h, n)))

    def __call__(self, operator: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        node = ir.node(operator, list(inputs), attributes)
        self._graph.insert_before(self._node, node)
        return node.outputs[0]

    def _split(self, value: ir.Value, parts: int) -> Sequence[ir.Value]:
        """Equal parts of the last axis; how the operator is told depends on the opset."""
        sizes = [self._size] * parts
        if self._opset >= 13:
            node = ir.node("Split", [value, self._stored(np.array(sizes))], {"axis": 1}, num_outputs=parts)
        else:
            node = ir.node("Split", [value], {"axis": 1, "split": sizes}, num_outputs=parts)
        self._graph.insert_before(self._node, node)
        return node.outputs

    def _reshaped(self, value: ir.Value | None, shape: Sequence[int]) -> ir.Value:
        assert value is not None
        return self("Reshape", value, self._stored(np.array(shape)))

    def _stored(self, array: Array) -> ir.Value:
        name = f"{self._node.name}.unrolled.{len(self._graph.initializers)}"
        tensor = ir.tensor(np.ascontiguousarray(array), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
        self._graph.initializers[name] = value
        return value
