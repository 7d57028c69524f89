"""Quantise weights to 8-bit or 4-bit integers.

Every large matrix that a MatMul or Gemm multiplies with becomes integers and scales (:mod:`edgemem.models.blockwise`),
which a DequantizeLinear feeds to a MatMul: standard ONNX, opset 21. Engines fuse the pair into one kernel that reads
the small integers.

A table that is looked up (Gather) stays a table. If it is also the matrix of the output layer, the matrix is quantised
and the table is kept beside it: no engine looks up rows in a matrix whose blocks run across them. Tables are kept in
16 bits, which is far more exact than the quantised matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from edgemem.errors import ExportError
from edgemem.export.parameters import ParameterNames, float_tensor
from edgemem.export.passes.products import add_initializer, constant_operand, remove_unused, replace_product
from edgemem.export.stored import StoredWeights
from edgemem.models.blockwise import QuantizedMatrix, pack_int4, quantize_matrix
from edgemem.precision import BLOCK_SIZES, BLOCKWISE_OPSET, LEAST_COLUMNS, LEAST_ELEMENTS, Precision
from edgemem.protocol import TORCH_DTYPES

_KINDS = {"int8": ir.DataType.INT8, "int4": ir.DataType.INT4}


def quantize(models: Sequence[ir.Model], module: nn.Module, precision: Precision, stored: StoredWeights) -> None:
    """Quantise the large matrices.

    Before: graphs that share their weights, with floating-point matrices.
    After: each large matrix is a DequantizeLinear of scaled integers, and the product is computed in the precision's
    dtype. The graphs use opset 21 or later. Inputs and outputs keep their dtypes.

    Args:
        models: The graphs; changed in place.
        module: What they were traced from: its parameters give the matrices their names.
        precision: The precision; its ``weights`` is set.
        stored: Gets the quantised matrices, and the reason for each large matrix that is left.

    Raises:
        ExportError: No matrix can be quantised.
    """
    work = _Quantizer(module, precision, stored)
    for model in models:
        work.quantize(model)
    if not stored.matrices:
        why = "; ".join(f"{name} {reason}" for name, reason in stored.left.items())
        raise ExportError(
            f"weights {precision.weights}: the model has no matrix that can be quantised{f' ({why})' if why else ''}.",
            hint=f"Matrices are quantised from {LEAST_ELEMENTS} elements and {LEAST_COLUMNS} columns on. "
            "Leave the option out.",
        )


class _Quantizer:
    def __init__(self, module: nn.Module, precision: Precision, stored: StoredWeights) -> None:
        assert precision.weights is not None
        self.kind = precision.weights
        self.block_size = precision.block_size
        self.scale_dtype = TORCH_DTYPES[precision.dtype]
        self.stored = stored
        self.names = ParameterNames(module)

    def quantize(self, model: ir.Model) -> None:
        for node in [node for graph in model.graphs() for node in graph]:
            operand = constant_operand(node)
            tensor = float_tensor(operand.weight) if operand is not None else None
            if operand is None or tensor is None or tensor.numel() < LEAST_ELEMENTS:
                continue
            name, is_transpose = self.names.find(operand.weight, tensor)
            matrix = tensor.t() if operand.transposed else tensor
            reason = self._reason(matrix)
            if reason is not None:
                self.stored.left[name] = reason
                continue
            if name not in self.stored.matrices:
                sizes = (size for size in reversed(BLOCK_SIZES) if size <= self.block_size)
                block = next(size for size in sizes if matrix.shape[0] % size == 0)
                self.stored.matrices[name] = quantize_matrix(matrix, self.kind, block, self.scale_dtype)
                # The parameter itself may be the transpose of what is multiplied with.
                self.stored.transposed[name] = operand.transposed != is_transpose
            self._rewire(model.graph, node, name)
        remove_unused(model)
        model.opset_imports[""] = max(BLOCKWISE_OPSET, model.opset_imports.get("", 0))
        model.ir_version = max(10, model.ir_version or 0)  # the first with 4-bit types

    @staticmethod
    def _reason(matrix: Tensor) -> str | None:
        """Why a matrix is left as it is, or ``None``."""
        if matrix.dim() != 2:
            return f"has {matrix.dim()} axes"
        if matrix.shape[1] < LEAST_COLUMNS:
            return f"has {matrix.shape[1]} columns, fewer than {LEAST_COLUMNS}"
        if matrix.shape[0] % BLOCK_SIZES[0]:
            return f"has {matrix.shape[0]} rows, not a multiple of {BLOCK_SIZES[0]}"
        return None

    def _rewire(self, graph: ir.Graph, node: ir.Node, name: str) -> None:
        """Put a DequantizeLinear in front of a product. Each product has its own: engines fuse pairs.

        Its inputs have their own names (the weights file stores equal bytes once): ONNX Runtime would merge two nodes
        with the same inputs, and fuse neither product.

        For a product inside a loop it stands before the loop: engines fuse nothing inside loops, and would dequantise
        the matrix in every iteration.
        """
        matrix = self.stored.matrices[name]
        numbers, scale = self._initializers(graph, name, matrix)
        right = ir.node("DequantizeLinear", [numbers, scale], {"axis": 0, "block_size": matrix.block_size})
        assert isinstance(node.graph, ir.Graph)
        if node.graph is not graph:
            wide = right.outputs[0]
            wide.name, wide.type = f"{numbers.name}.wide", scale.type
            graph.insert_before(graph[0], right)
            right = ir.node("Identity", [wide])
        for relu in [use.node for use in node.outputs[0].uses() if use.node.op_type == "Relu"]:
            _relu_as_max(graph, relu)
        replace_product(node.graph, node, right, scale.dtype)

    @staticmethod
    def _initializers(graph: ir.Graph, name: str, matrix: QuantizedMatrix) -> tuple[ir.Value, ir.Value]:
        number = next(n for n in itertools.count(1) if f"{name}.scale{_suffix(n)}" not in graph.initializers)
        keys = [f"{name}.{ending}{_suffix(number)}" for ending in (matrix.kind, "scale")]
        numbers: ir.TensorProtocol
        if matrix.kind == "int4":
            packed = pack_int4(matrix.values).reshape(-1).numpy()
            shape = tuple(matrix.values.shape)
            numbers = ir.PackedTensor(packed, _KINDS[matrix.kind], shape=shape, name=keys[0])
        else:
            numbers = TorchTensor(matrix.values, name=keys[0])
        return add_initializer(graph, numbers), add_initializer(graph, TorchTensor(matrix.scale, name=keys[1]))


def _relu_as_max(graph: ir.Graph, relu: ir.Node) -> None:
    """Put ``max(x, 0)`` in the place of a Relu: ONNX Runtime fuses no product that a Relu follows."""
    x, output = relu.inputs[0], relu.outputs[0]
    assert x is not None
    assert isinstance(relu.graph, ir.Graph)
    name = f"zero.{x.dtype}"
    if name not in graph.initializers:
        add_initializer(graph, ir.tensor(0.0, dtype=x.dtype, name=name))
    made = ir.node("Max", [x, graph.initializers[name]])
    relu.graph.insert_before(relu, made)
    found = made.outputs[0]
    found.name, output.name = output.name, None
    found.shape, found.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, found, replace_graph_outputs=True)
    relu.graph.remove(relu, safe=True)


def _suffix(number: int) -> str:
    return "" if number == 1 else f".{number}"
