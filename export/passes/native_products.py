"""Products with constant matrices as an operator that reads them as they lie in the file: no second, packed copy."""

from __future__ import annotations

import onnx_ir as ir

from edgemem.export.passes.products import Operand, constant_operand
from edgemem.export.passes.values import constant, made_by, replace_value, used_once, without_absent_end
from edgemem.memories.site import DOMAIN

PRODUCT = "MatMul"
BIAS, SCALE = 2, 3  # where the operator takes them


def own_products(model: ir.Model) -> None:
    """Put the operator in the place of products with matrices in float32 or 4 bits, and of the bias behind them.

    Before: any graph.
    After: what computed the products is unused; products with matrices of 8-bit integers are as they were, since the
    engine's own kernels for them are as fast.
    """
    graph = model.graph
    for node in list(graph):
        _turn(graph, node)
    for node in list(graph):
        operand, scale = constant_operand(node), None
        if operand is None:
            operand, scale = _int4_operand(node)
        if operand is None or not (scale is not None or _is_matrix(operand.weight)):
            continue
        bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
        if bias is not None and not _is_bias(bias, operand.weight, operand.transposed):
            continue
        last = node
        if bias is None:
            last, bias = _with_bias(node, operand.weight, operand.transposed)
        inputs = without_absent_end([node.inputs[0], operand.weight, bias, scale])
        transposed = {"transposed": int(operand.transposed)}
        product = ir.node(PRODUCT, inputs, transposed, domain=DOMAIN, version=1)
        graph.insert_before(last, product)
        replace_value(last.outputs[0], product.outputs[0])


def _turn(graph: ir.Graph, node: ir.Node) -> None:
    """Write ``w · x`` with a constant ``w`` ``[N, K]`` and ``x`` ``[B, K, T]`` as ``(xᵀ · wᵀ)ᵀ``."""
    if node.domain or node.op_type != "MatMul":
        return
    weight, x = node.inputs
    shape, result = (None if value is None else value.meta.get("shape") for value in (x, node.outputs[0]))
    if weight is None or not weight.is_initializer() or not _is_matrix(weight):
        return
    if shape is None or result is None or len(shape) != 3:
        return
    swap = {"perm": [0, 2, 1]}
    before, columns = ir.node("Transpose", [x], swap), ir.node("Transpose", [weight], {"perm": [1, 0]})
    product = ir.node("MatMul", [before.outputs[0], columns.outputs[0]])
    after = ir.node("Transpose", [product.outputs[0]], swap)
    for new, sizes in ((before, shape), (product, result)):
        new.outputs[0].meta["shape"] = ir.Shape([sizes[0], sizes[2], sizes[1]])
    for new in (before, columns, product):
        new.outputs[0].name = f"{node.outputs[0].name}.{'xwy'[(before, columns, product).index(new)]}"
    graph.insert_before(node, [before, columns, product, after])
    replace_value(node.outputs[0], after.outputs[0])


def _int4_operand(node: ir.Node) -> tuple[Operand, ir.Value] | tuple[None, None]:
    """The matrix of 4-bit integers and the scales that a product multiplies with, as :mod:`quantize` writes them."""
    wide = made_by(node.inputs[1], "DequantizeLinear") if node.op_type == "MatMul" and not node.domain else None
    if wide is None or len(wide.inputs) != 2:
        return None, None
    matrix, scale = wide.inputs
    if matrix is None or scale is None or not (matrix.is_initializer() and scale.is_initializer()):
        return None, None
    numbers, scales = matrix.const_value, scale.const_value
    assert numbers is not None
    assert scales is not None
    whole_bytes = numbers.shape.numpy()[1] % 2 == 0  # in every row
    fits = numbers.dtype == ir.DataType.INT4 and scales.dtype == ir.DataType.FLOAT and whole_bytes
    return (Operand(matrix, transposed=False), scale) if fits else (None, None)


def _is_matrix(weight: ir.Value) -> bool:
    tensor = weight.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2


def _with_bias(node: ir.Node, weight: ir.Value, transposed: bool) -> tuple[ir.Node, ir.Value | None]:
    """The addition of a bias that alone uses a product, and the bias; else the product, and ``None``."""
    if used_once(node.outputs[0]):
        (use,) = node.outputs[0].uses()
        adding = made_by(use.node.outputs[0], "Add")
        if adding is not None:
            other = adding.inputs[1 - use.idx]
            if other is not None and _is_bias(other, weight, transposed):
                return adding, other
    return node, None


def _is_bias(value: ir.Value, weight: ir.Value, transposed: bool) -> bool:
    found, matrix = constant(value), weight.const_value
    assert matrix is not None
    columns = matrix.shape[0 if transposed else 1]
    return found is not None and found.shape == (columns,) and str(found.dtype) == "float32"
