"""A module's outputs over whole sequences: what the streams of a bundle are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemem.bundle import GraphFile
from edgemem.contract import POSITION, Contract, InputSpec, Sizes, TensorSpec
from edgemem.protocol import TORCH_DTYPES, as_one, by_name, initial_tensors

Array = np.ndarray[Any, Any]


def whole_sequence(module: nn.Module, contract: Contract, data: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of sequences from position 0 in one call; in one call a step where the module takes no longer ones.

    Args:
        module: Follows the streaming protocol.
        contract: Its contract.
        data: Data inputs ``[B, T * takes, *shape]`` and held inputs ``[B, *shape]`` by name.

    Returns:
        Every output by name, ``[B, T * gives, *shape]``.
    """
    first = contract.input
    batch, time = data[first.name].shape[0], data[first.name].shape[1] // first.takes
    single = contract.max_chunk == 1 and all(state.update == "replace" for state in contract)
    calls = [(step, step + 1) for step in range(time)] if single else [(0, time)]
    state = initial_tensors(contract, batch)
    parts: dict[str, list[Array]] = {spec.name: [] for spec in contract.output_specs}
    for start, stop in calls:
        output, new = module(module_input(contract, data, start, stop), state)
        state = {**new, **({POSITION: state[POSITION] + stop - start} if POSITION in state else {})}
        for name, value in outputs_of(contract, output, stop - start).items():
            parts[name].append(value)
    return {name: np.concatenate(values, axis=1) for name, values in parts.items()}


def module_input(contract: Contract, data: Mapping[str, Array], start: int, stop: int) -> Any:
    """What ``forward`` gets as ``x`` for the steps from ``start`` to ``stop`` of sequences, see :func:`whole_sequence`.

    A framed input also gets the items before them, and zeros before the first.
    """
    given = {}
    for tensor in contract.inputs(GraphFile("", stop - start, stop - start)):
        if isinstance(tensor.spec, InputSpec):
            spec = tensor.spec
            value = data[spec.name] if spec.role != "fixed" else np.asarray(spec.value)
            if spec.role == "data":
                value = _items(spec, value, start, stop)
            given[spec.name] = _as_graph(tensor, value, stop - start)
    return as_one(contract, given)


def outputs_of(contract: Contract, output: Any, time: int) -> dict[str, Array]:
    """What ``forward`` returned for ``time`` steps by name, ``[B, time * gives, *shape]``; real values as float32."""
    found = by_name(contract, output)
    tensors = [tensor for tensor in contract.outputs(GraphFile("", time, time)) if tensor.role == "output"]
    return {tensor.name: tensor.leading(_array(found[tensor.name])) for tensor in tensors}


def _array(value: Tensor) -> Array:
    return np.asarray((value.float() if value.is_floating_point() else value).numpy())


def _items(spec: InputSpec, value: Array, start: int, stop: int) -> Array:
    zeros = np.zeros((len(value), spec.context, *value.shape[2:]), value.dtype)
    return np.concatenate([zeros, value], axis=1)[:, start * spec.takes : stop * spec.takes + spec.context]


def _as_graph(tensor: TensorSpec, value: Array, time: int) -> Tensor:
    dtype = TORCH_DTYPES[tensor.dtype]
    if tensor.role == "fixed":
        return torch.tensor(value).to(dtype)
    filled = np.empty(tensor.shape(Sizes(len(value), time)), value.dtype)
    tensor.leading(filled)[...] = value
    return torch.from_numpy(filled).to(dtype)
