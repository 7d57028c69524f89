"""Inputs and outputs of engines: as TensorRT lists them, and as the contract wants them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from edgemem.bundle import GraphFile
from edgemem.contract import Contract, FoundTensor, TensorSpec, difference
from edgemem.dtypes import dtype_of_tensorrt
from edgemem.runtimes.trt.flavour import Flavour

TOP_VALUES, TOP_INDICES = "top_values", "top_indices"
"""The outputs that an engine built with ``top_k`` has besides the contract's."""


@dataclass(frozen=True)
class IoTensor:
    """One input or output of an engine.

    Attributes:
        name: Its name.
        is_input: Input rather than output.
        dtype: Element type, by the contract's names.
        shape: Its shape; -1 for an axis whose size the caller chooses.
    """

    name: str
    is_input: bool
    dtype: str
    shape: tuple[int, ...]

    @property
    def found(self) -> FoundTensor:
        """As the contract's comparison takes it. TensorRT gives indices as int32 or int64."""
        dtype = "int32" if self.name == TOP_INDICES and self.dtype == "int64" else self.dtype
        return FoundTensor(self.name, dtype, tuple(None if size < 0 else size for size in self.shape))


def network_io(network: Any) -> tuple[IoTensor, ...]:
    """Inputs and outputs of a network definition, which needs no GPU, as an engine's own list has them."""
    tensors = [(True, network.get_input(i)) for i in range(network.num_inputs)]
    tensors += [(False, network.get_output(i)) for i in range(network.num_outputs)]
    return tuple(
        IoTensor(tensor.name, is_input, dtype_name(tensor.dtype), tuple(int(size) for size in tensor.shape))
        for is_input, tensor in tensors
    )


def engine_io(flavour: Flavour, engine: Any) -> tuple[IoTensor, ...]:
    """Inputs and outputs of a loaded engine."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return tuple(
        IoTensor(
            name,
            engine.get_tensor_mode(name) == flavour.module.TensorIOMode.INPUT,
            dtype_name(engine.get_tensor_dtype(name)),
            tuple(int(size) for size in engine.get_tensor_shape(name)),
        )
        for name in names
    )


def dtype_name(dtype: Any) -> str:
    """The contract's name of a TensorRT ``DataType``."""
    return dtype_of_tensorrt(str(getattr(dtype, "name", dtype)))


def expected_io(contract: Contract, graph: GraphFile, top_k: int = 0) -> tuple[IoTensor, ...]:
    """Inputs and outputs that an engine of the graph must have."""
    inputs, outputs = contract.inputs(graph), _outputs(contract, graph, top_k)
    return tuple(
        IoTensor(tensor.name, is_input, tensor.dtype, _sizes(tensor))
        for is_input, tensors in ((True, inputs), (False, outputs))
        for tensor in tensors
    )


def io_difference(found: tuple[IoTensor, ...], contract: Contract, graph: GraphFile, top_k: int = 0) -> str:
    """The first difference between an engine's inputs and outputs and the contract's; ``""`` where there is none."""
    return difference(
        "input", (tensor.found for tensor in found if tensor.is_input), contract.inputs(graph)
    ) or difference(
        "output", (tensor.found for tensor in found if not tensor.is_input), _outputs(contract, graph, top_k)
    )


def _outputs(contract: Contract, graph: GraphFile, top_k: int) -> tuple[TensorSpec, ...]:
    outputs = contract.outputs(graph)
    if not top_k:
        return outputs
    whole = next(tensor for tensor in outputs if tensor.name == contract.output.name)
    values = replace(whole, name=TOP_VALUES, axes=(*whole.axes[:-1], top_k), spec=None)
    return (*outputs, values, replace(values, name=TOP_INDICES, dtype="int32"))


def _sizes(tensor: TensorSpec) -> tuple[int, ...]:
    sizes = (axis if isinstance(axis, int) else axis.only for axis in tensor.axes)
    return tuple(-1 if size is None else size for size in sizes)
