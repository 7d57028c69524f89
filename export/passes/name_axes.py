"""Name the dynamic axes of a traced graph."""

from __future__ import annotations

import onnx_ir as ir

from edgemem.contract import Contract
from edgemem.errors import ExportError

BATCH, TIME, OUTPUTS, LENGTH = "batch", "time", "outputs", "length"


def name_axes(model: ir.Model, contract: Contract, axes: list[dict[int, str]]) -> None:
    """Name the dynamic axes of inputs and outputs.

    Shapes that torch noted inside the graph are dropped: some (those after an LSTM) are the example's, not the
    model's, and engines infer their own.

    Before: a traced graph whose inputs and outputs are in the contract's order.
    After: inputs and outputs have the contract's shapes, with names for dynamic axes; no other value has a shape.

    Args:
        model: The graph; changed in place.
        contract: Its contract.
        axes: For each input, its dynamic axes and their names.

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
                value.shape = None
    time: int | str = axes[0].get(1, 1)
    produced = OUTPUTS if contract.output_indices else time
    shapes: list[list[int | str]] = [[BATCH, produced, *contract.output.shape]]
    for spec in contract:
        if spec.update == "append":
            heads, _, width = spec.fixed_shape
            shapes.append([BATCH, heads, time, width])
        else:
            shapes.append([BATCH, *(f"{LENGTH} + {time}" if size is None else size for size in spec.shape)])
    for value, shape in zip(model.graph.outputs, shapes, strict=True):
        value.shape = ir.Shape(shape)
