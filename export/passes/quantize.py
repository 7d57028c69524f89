"""Weights as 8-bit or 4-bit whole numbers: a pass over traced graphs.

Every large matrix that a MatMul or Gemm multiplies with becomes whole numbers and scales
(:mod:`edgemem.models.blockwise`), which a DequantizeLinear feeds to a MatMul: standard ONNX, opset 21. Engines fuse the
pair into one kernel that reads the small numbers.

A table that is looked up (Gather) stays a table. Where it is the output layer's matrix too, the matrix is quantised
and the table is kept beside it: no engine looks rows up in a matrix whose blocks run across them. Tables are kept in
16 bits, which is far finer than what is left of the matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from edgemem.errors import ExportError
from edgemem.export.parameters import ParameterNames, float_tensor
from edgemem.export.stored import LEAST_ELEMENTS, StoredWeights
from edgemem.models.blockwise import QuantizedMatrix, pack_int4, quantize_matrix
from edgemem.precision import BLOCK_SIZES, Precision
from edgemem.protocol import TORCH_DTYPES

OPSET = 21
"""The first with blockwise DequantizeLinear and 4-bit types."""
LEAST_COLUMNS = 32
"""Narrower matrices are gates and readings of a few values: sensitive, and small."""

_KINDS = {"int8": ir.DataType.INT8, "int4": ir.DataType.INT4}


def quantize_graphs(models: Sequence[ir.Model], module: nn.Module, precision: Precision) -> StoredWeights:
    """Quantise the large matrices of ``models`` in place.

    Args:
        models: Graphs that share their weights.
        module: What they were traced from: its parameters give the matrices their names.
        precision: What is asked for; its ``weights`` is set. Products are computed in its ``dtype``.

    Raises:
        ExportError: There is no matrix that can be quantised.
    """
    run = _Pass(module, precision)
    for model in models:
        run.quantize(model)
    if not run.made.matrices:
        why = "; ".join(f"{name} {reason}" for name, reason in run.made.left.items())
        raise ExportError(
            f"weights {precision.weights}: the model has no matrix that can be quantised{f' ({why})' if why else ''}.",
            hint=f"Matrices are quantised from {LEAST_ELEMENTS} elements and {LEAST_COLUMNS} columns on. "
            "Leave the option out.",
        )
    return run.made


@dataclass(frozen=True)
class Operand:
    """The constant right-hand side of a product.

    Attributes:
        weight: The initialiser.
        transposed: Whether the product is with its transpose.
    """

    weight: ir.Value
    transposed: bool


def constant_operand(node: ir.Node) -> Operand | None:
    """The constant matrix that a MatMul or a plain Gemm multiplies with, or ``None``."""
    if node.domain or node.op_type not in ("MatMul", "Gemm"):
        return None
    transposed = False
    if node.op_type == "Gemm":
        if _number(node, "transA", 0) or _number(node, "alpha", 1) != 1 or _number(node, "beta", 1) != 1:
            return None
        transposed = bool(_number(node, "transB", 0))
    value = node.inputs[1]
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type == "Transpose":
        perm = producer.attributes.get("perm")
        if perm is not None and list(perm.as_ints()) != [1, 0]:
            return None
        value, transposed = producer.inputs[0], not transposed
    return Operand(value, transposed) if value is not None and value.is_initializer() else None


class _Pass:
    def __init__(self, module: nn.Module, precision: Precision) -> None:
        assert precision.weights is not None
        self.kind = precision.weights
        self.block_size = precision.block_size
        self.scale_dtype = TORCH_DTYPES[precision.dtype]
        self.made = StoredWeights()
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
                self.made.left[name] = reason
                continue
            if name not in self.made.matrices:
                sizes = (size for size in reversed(BLOCK_SIZES) if size <= self.block_size)
                block = next(size for size in sizes if matrix.shape[0] % size == 0)
                self.made.matrices[name] = quantize_matrix(matrix, self.kind, block, self.scale_dtype)
                # The parameter itself may be the transpose of what is multiplied with.
                self.made.transposed[name] = operand.transposed != is_transpose
            self._rewire(model.graph, node, name)
        remove_unused(model)
        model.opset_imports[""] = max(OPSET, model.opset_imports.get("", 0))
        model.ir_version = max(10, model.ir_version or 0)  # the first with 4-bit types

    @staticmethod
    def _reason(matrix: Tensor) -> str | None:
        """Why a matrix is left as it is, or ``None``."""
        if matrix.dim() != 2:
            return f"has {matrix.dim()} axes"
        if matrix.shape[1] < LEAST_COLUMNS:
            return f"has {matrix.shape[1]} columns, fewer than {LEAST_COLUMNS}"
        if matrix.shape[0] % BLOCK_SIZES[0]:
            return f"has {matrix.shape[0]} rows, no multiple of {BLOCK_SIZES[0]}"
        return None

    def _rewire(self, graph: ir.Graph, node: ir.Node, name: str) -> None:
        """Put a DequantizeLinear in front of a product. Each product has its own: engines fuse pairs.

        Its inputs are its own too, in name (the weights file holds equal bytes once): ONNX Runtime would merge two
        nodes of equal inputs into one, which then makes no pair.

        For a product inside a loop it stands before the loop: engines fuse nothing there, and would widen the matrix
        in every turn.
        """
        matrix = self.made.matrices[name]
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


def replace_product(graph: ir.Graph, node: ir.Node, right: ir.Node | None, dtype: ir.DataType | None) -> None:
    """Compute a product in ``dtype``, with what ``right`` gives on its right-hand side, and a Gemm's bias after it.

    Args:
        graph: The graph of ``node``.
        node: A MatMul, or a plain Gemm.
        right: Gives the right-hand side ``[K, N]`` in ``dtype``; ``None``: ``node`` has it already.
        dtype: Of the product. Where it is not that of the left-hand side, that is cast to it, and the product back.
    """
    output, left = node.outputs[0], node.inputs[0]
    assert left is not None
    assert dtype is not None
    assert output.dtype is not None
    new: list[ir.Node] = [] if right is None else [right]

    def then(op_type: str, inputs: Sequence[ir.Value | None], result: ir.DataType, **attributes: int) -> ir.Value:
        made = ir.node(op_type, inputs, attributes)
        made.outputs[0].name, made.outputs[0].dtype = f"{output.name}.{op_type}.{len(new)}", result
        new.append(made)
        return made.outputs[0]

    if right is not None:
        right.outputs[0].name, right.outputs[0].dtype = f"{output.name}.weight", dtype
    wide = output.dtype
    value = left if wide == dtype else then("Cast", [left], dtype, to=dtype.value)
    if right is None and node.op_type == "Gemm":
        value = then("Gemm", [value, node.inputs[1]], dtype, transB=int(_number(node, "transB", 0)))
    else:
        value = then("MatMul", [value, node.inputs[1] if right is None else right.outputs[0]], dtype)
    if wide != dtype:
        value = then("Cast", [value], wide, to=wide.value)
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        value = then("Add", [value, node.inputs[2]], wide)
    graph.insert_before(node, new)
    name, output.name = output.name, None
    value.name, value.shape, value.type = name, output.shape, output.type
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Give a graph a constant under the tensor's own name."""
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def remove_unused(model: ir.Model) -> None:
    """Remove the transposes and constants that nothing uses any more."""
    for graph in model.graphs():
        for node in reversed(list(graph)):
            output = node.outputs[0]
            if node.op_type == "Transpose" and not output.uses() and not output.is_graph_output():
                graph.remove(node, safe=True)
    initializers = model.graph.initializers
    for key, value in list(initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del initializers[key]


def _suffix(number: int) -> str:
    return "" if number == 1 else f".{number}"


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
