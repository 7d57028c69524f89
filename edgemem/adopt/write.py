"""The files of an adopted bundle."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from edgemem.bundle import GraphFile
from edgemem.contract import METADATA_KEY, Axis, Contract, TensorSpec

MODEL = "model.onnx"
_INLINE_BYTES, _FLOAT_BYTES = 1024, 4


def write_graph(model: ir.Model, contract: Contract, folder: Path) -> GraphFile:
    """Write the graph with its contract, and its weights beside it.

    Before: a model whose inputs and outputs are the contract's.
    After: they have the contract's order and axes; the file has the contract in its metadata; tensors of a KiB and more
    are in ``weights.safetensors``.

    Args:
        model: The model; changed in place.
        contract: Its contract.
        folder: Where to write.
    """
    found = GraphFile(MODEL, 1, contract.max_chunk)
    graph = model.graph
    by_name = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    graph.inputs[:] = [_declared(by_name[tensor.name], tensor) for tensor in contract.inputs(found)]
    graph.outputs[:] = [_declared(by_name[tensor.name], tensor) for tensor in contract.outputs(found)]
    model.metadata_props[METADATA_KEY] = json.dumps(contract.to_json(), separators=(",", ":"))
    ir.external_data.load_to_model(model)  # small tensors move into the graph
    LiftConstantsToInitializersPass(size_limit=_INLINE_BYTES // _FLOAT_BYTES)(model)
    for value in graph.initializers.values():
        if value.const_value is not None:
            value.const_value.name = value.name  # under which the weights' file has it
    # The name of the weights' file follows from the graph's.
    written = folder / "weights.onnx"
    ir.save_safetensors(model, written, size_threshold_bytes=_INLINE_BYTES)
    written.rename(folder / MODEL)
    return found


def _declared(value: ir.Value, tensor: TensorSpec) -> ir.Value:
    value.shape = ir.Shape([_size(axis) for axis in tensor.axes])
    return value


def _size(axis: int | Axis) -> int | str:
    if isinstance(axis, int):
        return axis
    return str(axis) if axis.only is None else axis.only
