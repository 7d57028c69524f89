"""Products of a graph with constant matrices, which several passes change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir


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


def replace_product(graph: ir.Graph, node: ir.Node, right: ir.Node | None, dtype: ir.DataType | None) -> None:
    """Compute a product in ``dtype``, with the output of ``right`` on its right-hand side, and a Gemm's bias after it.

    Args:
        graph: The graph of ``node``.
        node: A MatMul, or a plain Gemm.
        right: Outputs the right-hand side ``[K, N]`` in ``dtype``; ``None``: ``node`` has it already.
        dtype: Of the product. If the left-hand side has another one, it is cast to it, and the product is cast back.
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
    value.meta.update(output.meta)
    ir.convenience.replace_all_uses_with(output, value, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def add_initializer(graph: ir.Graph, tensor: ir.TensorProtocol) -> ir.Value:
    """Add a constant to a graph, under the tensor's name."""
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def remove_unused(model: ir.Model) -> None:
    """Remove unused transposes and constants."""
    for graph in model.graphs():
        for node in reversed(list(graph)):
            output = node.outputs[0]
            if node.op_type == "Transpose" and not output.uses() and not output.is_graph_output():
                graph.remove(node, safe=True)
    initializers = model.graph.initializers
    for key, value in list(initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del initializers[key]


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)
