"""Store large float32 weights in half precision, and compute the matrix products with them in it.

This does to a graph what ``torch.autocast`` does to a module: norms, softmax, states and counters stay as they are. So
it suits any model. (edgemem's own decoder goes further: its rings and its residual stream are in half precision.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

from edgemem.errors import ExportError
from edgemem.export.parameters import ParameterNames, float_tensor
from edgemem.export.passes.products import constant_operand, remove_unused, replace_product
from edgemem.export.stored import StoredWeights
from edgemem.precision import LEAST_ELEMENTS, Precision
from edgemem.protocol import TORCH_DTYPES

_ONNX = {torch.float16: ir.DataType.FLOAT16, torch.bfloat16: ir.DataType.BFLOAT16}


def halve_matrices(models: Sequence[ir.Model], module: nn.Module, precision: Precision, stored: StoredWeights) -> None:
    """Store large float32 matrices and tables in the precision's dtype.

    Before: float32 graphs that share their weights; some matrices may be quantised.
    After: the other large matrices and the tables are in the precision's dtype. Products with them are computed in it;
    what is looked up is cast back to float32. Inputs and outputs keep their dtypes.

    Args:
        models: The graphs; changed in place.
        module: What they were traced from.
        precision: Its dtype is ``"float16"`` or ``"bfloat16"``.
        stored: Gets the new weights.

    Raises:
        ExportError: There is nothing to halve.
    """
    _halve(models, module, TORCH_DTYPES[precision.dtype], stored, tables_only=False)
    if not (stored.halved or stored.lookups or stored.matrices):
        raise ExportError(
            f"dtype {precision.dtype}: the model has no large matrix to store in it.",
            hint=f"Matrices of {LEAST_ELEMENTS} elements and more are halved. Leave the option out.",
        )


def halve_tables(models: Sequence[ir.Model], module: nn.Module, stored: StoredWeights) -> None:
    """Store large float32 tables that are only looked up in float16.

    Before: float32 graphs that share their weights; some matrices may be quantised.
    After: these tables are float16, and what is looked up is cast back to float32. Matrices do not change.

    Args:
        models: The graphs; changed in place.
        module: What they were traced from.
        stored: Gets the new weights.
    """
    _halve(models, module, torch.float16, stored, tables_only=True)


def _halve(
    models: Sequence[ir.Model], module: nn.Module, dtype: torch.dtype, stored: StoredWeights, *, tables_only: bool
) -> None:
    names = ParameterNames(module)
    for model in models:
        for value in list(model.graph.initializers.values()):
            tensor = float_tensor(value)
            if tensor is None or tensor.dtype != torch.float32 or tensor.dim() < 2 or tensor.numel() < LEAST_ELEMENTS:
                continue
            uses = _uses(value)
            if uses is None or (tables_only and uses.products):
                continue
            half = _half(value, tensor, uses, names, dtype, stored)
            if half is not None:
                _replace(value, half, uses)
        remove_unused(model)


@dataclass
class _Uses:
    """The nodes that use a weight: products with it or with its transpose, and look-ups."""

    products: list[ir.Node] = field(default_factory=list)
    lookups: list[ir.Node] = field(default_factory=list)


def _uses(value: ir.Value) -> _Uses | None:
    """The uses of a weight; ``None`` if it has other uses too."""
    found = _Uses()
    for use in value.uses():
        node = use.node
        consumers = [node]
        if node.op_type == "Transpose":
            consumers = [other.node for other in node.outputs[0].uses()]
        for consumer in consumers:
            operand = constant_operand(consumer)
            if operand is not None and operand.weight is value:
                found.products.append(consumer)
            elif node.op_type == "Gather" and use.idx == 0:
                found.lookups.append(node)
            else:
                return None
    return found


def _half(
    value: ir.Value, tensor: Tensor, uses: _Uses, names: ParameterNames, dtype: torch.dtype, stored: StoredWeights
) -> Tensor | None:
    """The weight in half precision, the same tensor for every graph; ``None`` if it must stay in float32."""
    name, is_transpose = names.find(value, tensor)
    if not uses.products and is_transpose:
        return None  # a table is never the transpose of a parameter
    if dtype == torch.float16 and float(tensor.abs().max()) > torch.finfo(dtype).max:
        stored.left[name] = "holds values beyond float16's range"
        return None
    known = stored.halved if uses.products else stored.lookups
    if name in known and stored.transposed.get(name, False) == is_transpose:
        return known[name]
    half = tensor.detach().to(dtype)
    if name not in known:
        known[name] = half
        if uses.products:
            stored.transposed[name] = is_transpose
    return half


def _replace(value: ir.Value, half: Tensor, uses: _Uses) -> None:
    """Put the half-precision tensor into the graph, and cast around its uses."""
    value.const_value = TorchTensor(half, name=value.name)
    narrow = _ONNX[half.dtype]
    value.type = ir.TensorType(narrow)  # not only a new dtype: a graph and its clone share type objects
    for use in list(value.uses()):
        if use.node.op_type == "Transpose":
            use.node.outputs[0].type = value.type
    for node in uses.products:
        assert isinstance(node.graph, ir.Graph)
        replace_product(node.graph, node, None, narrow)
    for node in uses.lookups:
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
