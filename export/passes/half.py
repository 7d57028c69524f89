"""Weights and matrix products in 16 bits: a pass over traced graphs.

What ``torch.autocast`` does to a module's matrix products, this does to a graph's: large weights are stored in half
precision, the products with them are computed in it, and all else (norms, softmax, states, counters) stays as it is.
So it suits any model. (edgemem's own decoder goes further: its rings and its residual stream are in half precision.)
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import nn

from edgemem.errors import ExportError
from edgemem.export.parameters import ParameterNames, float_tensor
from edgemem.export.passes.quantize import constant_operand, remove_unused, replace_product
from edgemem.export.stored import LEAST_ELEMENTS, StoredWeights
from edgemem.precision import Precision
from edgemem.protocol import TORCH_DTYPES

_ONNX = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


def halve_graphs(
    models: Sequence[ir.Model], module: nn.Module, precision: Precision, made: StoredWeights, *, only_tables: bool
) -> None:
    """Store large float32 weights of ``models`` in half precision, in place.

    Args:
        models: Graphs that share their weights.
        module: What they were traced from.
        precision: What is asked for. Where its dtype is float32, tables are stored in float16.
        made: Takes up the new weights.
        only_tables: Leave the matrices, and halve what is only looked up.

    Raises:
        ExportError: There is nothing to halve.
    """
    dtype = torch.float16 if precision.dtype == "float32" else TORCH_DTYPES[precision.dtype]
    names = ParameterNames(module)
    for model in models:
        for value in list(model.graph.initializers.values()):
            _halve(value, names, dtype, made, only_tables)
        remove_unused(model)
    if not only_tables and not (made.halved or made.lookups or made.matrices):
        raise ExportError(
            f"dtype {precision.dtype}: the model has no large matrix to store in it.",
            hint=f"Matrices of {LEAST_ELEMENTS} elements and more are halved. Leave the option out.",
        )


def _halve(value: ir.Value, names: ParameterNames, dtype: torch.dtype, made: StoredWeights, only_tables: bool) -> None:
    tensor = float_tensor(value)
    if tensor is None or tensor.dtype != torch.float32 or tensor.dim() < 2 or tensor.numel() < LEAST_ELEMENTS:
        return
    products: list[ir.Node] = []
    lookups: list[ir.Node] = []
    for use in value.uses():
        node = use.node
        consumers = [node]
        if node.op_type == "Transpose":
            consumers = [other.node for other in node.outputs[0].uses()]
        for consumer in consumers:
            operand = constant_operand(consumer)
            if operand is not None and operand.weight is value:
                products.append(consumer)
            elif node.op_type == "Gather" and use.idx == 0:
                lookups.append(node)
            else:
                return  # something else looks at it
    if only_tables and products:
        return
    name, is_transpose = names.find(value, tensor)
    if not products and is_transpose:
        return  # a table is never the transpose of a parameter
    if dtype == torch.float16 and float(tensor.abs().max()) > torch.finfo(dtype).max:
        made.left[name] = "holds values beyond float16's range"
        return
    known = made.halved if products else made.lookups
    if name in known and made.transposed.get(name, False) == is_transpose:
        half = known[name]
    else:
        half = tensor.detach().to(dtype)
        if name not in known:
            known[name] = half
            if products:
                made.transposed[name] = is_transpose
    value.const_value = TorchTensor(half, name=value.name)
    narrow = _ONNX[dtype]
    value.type = ir.TensorType(narrow)  # not only a new dtype: a graph and its clone share type objects
    for use in list(value.uses()):
        if use.node.op_type == "Transpose":
            use.node.outputs[0].type = value.type
    for node in products:
        assert isinstance(node.graph, ir.Graph)
        replace_product(node.graph, node, None, narrow)
    for node in lookups:
        _widen(node, narrow)


def _widen(gather: ir.Node, dtype: ir.DataType) -> None:
    """Cast what was looked up back to float32."""
    graph, found = gather.graph, gather.outputs[0]
    assert isinstance(graph, ir.Graph)
    consumers = list(found.uses())
    found.type = ir.TensorType(dtype)
    cast = ir.node("Cast", [found], {"to": ir.DataType.FLOAT.value})
    cast.outputs[0].name, cast.outputs[0].dtype = f"{found.name}.wide", ir.DataType.FLOAT
    graph.insert_after(gather, cast)
    for use in consumers:
        use.node.replace_input_with(use.idx, cast.outputs[0])
