"""Weights of an adopted graph in fewer bits, by numpy.

Matrices that a MatMul or Gemm multiplies with become scaled integers that a DequantizeLinear widens, in blocks of rows
with a scale for each column, as in an export (docs/precision.md). In float16, products, convolutions and recurrent
operators with large weights are computed in it, between casts; states, inputs and outputs stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgemem.errors import ExportError
from edgemem.precision import (
    BLOCK_SIZES,
    LARGEST_QUANTS,
    LEAST_COLUMNS,
    LEAST_ELEMENTS,
    QUANT_RANGES,
    Precision,
    QuantType,
)

Array = NDArray[Any]
_PRODUCTS = ("MatMul", "Gemm")
_HALVED = (*_PRODUCTS, "Conv", "ConvTranspose", "LSTM", "GRU", "RNN")
_LENGTHS = 4  # the input of a recurrent operator that is no float


def narrow(model: ir.Model, precision: Precision) -> Precision:
    """Store large weights in a precision, and compute with them in it.

    Before: a float32 graph; of opset 21 or later where weights become integers.
    After: the precision's names say what became of each weight.

    Args:
        model: The model; changed in place.
        precision: What was asked for; not plain.

    Raises:
        ExportError: There is nothing to store so.
    """
    work = _Narrowing(model, precision)
    if precision.weights is not None:
        for node, weight in work.weights(_PRODUCTS):
            work.quantize(node, weight)
        if not work.matrices:
            why = "; ".join(f"{name} {reason}" for name, reason in work.left.items())
            raise ExportError(
                f"weights {precision.weights}: no matrix of a product can be stored so{f' ({why})' if why else ''}.",
                hint=f"Matrices have {LEAST_ELEMENTS} elements and {LEAST_COLUMNS} columns or more. --unroll writes "
                "LSTM and GRU of one step as products.",
            )
    if precision.dtype == "float16":
        for node, weight in work.weights(_HALVED):
            work.halve(node, weight)
        if not (work.halved or work.matrices):
            raise ExportError("dtype fp16: the model has no large weight to store in it.", hint="Leave it out.")
    RemoveUnusedNodesPass()(model)
    return replace(precision, matrices=tuple(sorted(work.matrices)), halved=tuple(sorted(work.halved)), left=work.left)


@dataclass
class _Narrowing:
    """A model on its way, and what became of its weights."""

    model: ir.Model
    precision: Precision
    matrices: set[str] = field(default_factory=set)
    halved: set[str] = field(default_factory=set)
    left: dict[str, str] = field(default_factory=dict)

    def weights(self, operators: tuple[str, ...]) -> Iterator[tuple[ir.Node, ir.Value]]:
        """Nodes of these operators, each with its large constant."""
        for node in [node for graph in self.model.graphs() for node in graph]:
            if node.domain == "" and node.op_type in operators:
                large = next((value for value in node.inputs if _size(value) >= LEAST_ELEMENTS), None)
                if large is not None:
                    yield node, large

    def quantize(self, node: ir.Node, weight: ir.Value) -> None:
        """Multiply with scaled integers."""
        matrix, name = _array(weight), str(weight.name)
        attributes = node.attributes
        plain = all(attributes.get_float(key, 1.0) == 1.0 for key in ("alpha", "beta"))
        if weight is not node.inputs[1] or matrix.ndim != 2 or attributes.get_int("transA", False) or not plain:
            self.left[name] = "is not the plain right-hand side of a product"
            return
        matrix = matrix.T if attributes.get_int("transB", False) else matrix
        if matrix.shape[1] < LEAST_COLUMNS or matrix.shape[0] % BLOCK_SIZES[0]:
            self.left[name] = f"has {matrix.shape[0]} rows and {matrix.shape[1]} columns"
            return
        block = next(b for b in reversed(BLOCK_SIZES) if b <= self.precision.block_size and not matrix.shape[0] % b)
        self.matrices.add(name)
        kind, half = self.precision.weights, self.precision.dtype == "float16"
        assert kind is not None
        values, scale = quantized(matrix, block, kind, np.float16 if half else np.float32)
        # Each product has integers and scales of its own: ONNX Runtime fuses no pair that shares them.
        numbers = self._stored(node, values.astype(ml_dtypes.int4 if kind == "int4" else np.int8))
        wide = self._before(node, "DequantizeLinear", numbers, self._stored(node, scale), axis=0, block_size=block)
        left = node.inputs[0]
        assert left is not None
        if half:
            left = self._before(node, "Cast", left, to=ir.DataType.FLOAT16.value)
        result = self._before(node, "MatMul", left, wide)
        if half:
            result = self._before(node, "Cast", result, to=ir.DataType.FLOAT.value)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            result = self._before(node, "Add", result, node.inputs[2])
        self._replace(node.outputs[0], result)
        assert node.graph is not None
        node.graph.remove(node, safe=True)

    def halve(self, node: ir.Node, weight: ir.Value) -> None:
        """Compute a node in float16."""
        if float(np.abs(_array(weight)).max()) > np.finfo(np.float16).max:
            self.left[str(weight.name)] = "holds values beyond float16's range"
            return
        self.halved.add(str(weight.name))
        for at, value in enumerate(node.inputs):
            if value is None or (at == _LENGTHS and node.op_type in ("LSTM", "GRU", "RNN")):
                continue
            if _size(value):
                node.replace_input_with(at, self._stored(node, _array(value).astype(np.float16), f"{value.name}.half"))
            else:
                node.replace_input_with(at, self._before(node, "Cast", value, to=ir.DataType.FLOAT16.value))
        assert isinstance(node.graph, ir.Graph)
        for output in node.outputs:
            if output.uses() or output.is_graph_output():
                cast = ir.node("Cast", [output], {"to": ir.DataType.FLOAT.value})
                self._replace(output, cast.outputs[0], but=cast)
                output.type = ir.TensorType(ir.DataType.FLOAT16)
                node.graph.insert_after(node, cast)

    def _before(self, node: ir.Node, operator: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = ir.node(operator, list(inputs), attributes)
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, made)
        return made.outputs[0]

    def _stored(self, node: ir.Node, array: Array, name: str = "") -> ir.Value:
        """A constant; one with a name is stored once."""
        known = self.model.graph.initializers
        name = name or f"{node.name or node.op_type}.narrow.{len(known)}"
        if name not in known:
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            known[name] = ir.Value(name=name, const_value=tensor, type=kind, shape=shape)
        return known[name]

    @staticmethod
    def _replace(old: ir.Value, new: ir.Value, but: ir.Node | None = None) -> None:
        """Use another value everywhere, as a graph's output too."""
        new.type, new.shape = old.type, old.shape
        if old.is_graph_output():
            old.name, new.name = None, old.name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        if but is not None:
            but.replace_input_with(0, old)


def quantized(matrix: Array, block: int, kind: QuantType, dtype: Any) -> tuple[Array, Array]:
    """The nearest integers, and scales of a dtype: ``[K, N]`` and ``[K / block, N]``.

    Scales are positive. Of int4, the best of several for each block; of int8, the largest weight becomes ±127.
    """
    blocks = matrix.astype(np.float32).reshape(-1, block, matrix.shape[1])
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    least, most = QUANT_RANGES[kind]
    best_q, best_scale, best_error = blocks, largest, np.full_like(largest, np.inf)
    for target in LARGEST_QUANTS[kind]:
        scale = np.maximum(largest / np.float32(target), np.finfo(dtype).tiny).astype(dtype).astype(np.float32)
        q = np.clip(np.rint(blocks / scale), least, most)
        error = ((q * scale - blocks) ** 2).sum(axis=1, keepdims=True)
        better = error < best_error
        best_q, best_scale = np.where(better, q, best_q), np.where(better, scale, best_scale)
        best_error = np.minimum(error, best_error)
    return best_q.reshape(matrix.shape).astype(np.int8), best_scale[:, 0].astype(dtype)


def _size(value: ir.Value | None) -> int:
    """Elements of a float32 constant; 0 for every other value."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.size if tensor is not None and tensor.dtype == ir.DataType.FLOAT else 0


def _array(value: ir.Value) -> Array:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None
    return np.asarray(tensor.numpy())
