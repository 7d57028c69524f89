"""Name the dynamic axes of a traced graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from edgemem.contract import Axis, TensorSpec
from edgemem.errors import ExportError


def name_axes(model: ir.Model, axes: Sequence[dict[int, str]], outputs: Sequence[TensorSpec]) -> None:
    """Name the dynamic axes of inputs and outputs.

    Shapes that torch noted inside the graph are dropped: some (those after an LSTM) are the example's, not the
    model's, and engines infer their own.

    Before: a traced graph whose inputs and outputs are in the contract's order.
    After: inputs and outputs have the contract's shapes, with names for dynamic axes; no other value has a shape, but
        ``meta["shape"]`` keeps it as the trace had it.

    Args:
        model: The graph; changed in place.
        axes: For each input, its dynamic axes and their names.
        outputs: The outputs of the contract.

    Raises:
        ExportError: The trace fixed an axis that must be dynamic.
    """
    for value, named in zip(model.graph.inputs, axes, strict=True):
        assert value.shape is not None
        sizes = list(value.shape)
        for axis, name in named.items():
            if isinstance(sizes[axis], int):
                raise ExportError(
                    f"the {name} axis of {value.name} was fixed to {sizes[axis]} by the trace.",
                    hint="The module turns that size into a Python number. Use tensor operations instead.",
                )
            sizes[axis] = ir.SymbolicDim(name)
        value.shape = ir.Shape(sizes)
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.meta["shape"] = value.shape
                value.shape = None
    for value, tensor in zip(model.graph.outputs, outputs, strict=True):
        value.shape = ir.Shape([_size(axis) for axis in tensor.axes])


def _size(axis: int | Axis) -> int | str:
    if isinstance(axis, int):
        return axis
    return str(axis) if axis.only is None else axis.only
