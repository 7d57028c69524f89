"""A module's outputs over whole sequences: what the streams of a bundle are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemem.bundle import GraphFile
from edgemem.contract import POSITION, Contract, InputSpec, Sizes, Stft, TensorSpec
from edgemem.export.verify.sequences import Sequences, by_step
from edgemem.measure import Array
from edgemem.protocol import TORCH_DTYPES, as_one, by_name, initial_tensors
from edgemem.runtimes.stft import to_frames, to_samples


def whole_sequence(module: nn.Module, contract: Contract, given: Sequences) -> dict[str, Array]:
    """The outputs of sequences from position 0.

    They are computed in one call; in one call a step where the module takes no longer ones.

    Args:
        module: Follows the streaming protocol.
        contract: Its contract.
        given: The sequences.

    Returns:
        Every output by name, ``[B, steps, items, *item_shape]``; real values as float32.
    """
    single = contract.max_chunk == 1 and all(state.update == "replace" for state in contract)
    calls = [(step, step + 1) for step in range(given.steps)] if single else [(0, given.steps)]
    state = initial_tensors(contract, given.batch)
    parts: dict[str, list[Array]] = {spec.name: [] for spec in contract.output_specs}
    for start, stop in calls:
        output, new = module(module_input(contract, given, start, stop), state)
        state = {**new, **({POSITION: state[POSITION] + stop - start} if POSITION in state else {})}
        for name, value in outputs_of(contract, output, stop - start).items():
            parts[name].append(value)
    return host_outputs(contract, {name: np.concatenate(values, axis=1) for name, values in parts.items()})


def module_input(contract: Contract, given: Sequences, start: int, stop: int) -> Any:
    """What ``forward`` gets as ``x`` for the steps from ``start`` to ``stop``.

    A framed input also gets the items before them, and zeros before the first.
    """
    found = {}
    for tensor in contract.inputs(GraphFile("", stop - start, stop - start)):
        spec = tensor.spec
        if isinstance(spec, InputSpec):
            if spec.role == "fixed":
                found[spec.name] = torch.tensor(spec.value, dtype=TORCH_DTYPES[spec.dtype])
            else:
                value = given.held[spec.name] if spec.role == "held" else _items(spec, given, start, stop)
                found[spec.name] = _as_graph(tensor, value, stop - start)
    return as_one(contract, found)


def outputs_of(contract: Contract, output: Any, time: int) -> dict[str, Array]:
    """What ``forward`` returned for ``time`` steps by name, ``[B, time * gives, *shape]``; real values as float32."""
    found: Mapping[str, Tensor] = by_name(contract, output)
    tensors = [tensor for tensor in contract.outputs(GraphFile("", time, time)) if tensor.role == "output"]
    return {tensor.name: tensor.leading(_array(found[tensor.name])) for tensor in tensors}


def host_outputs(contract: Contract, outputs: dict[str, Array]) -> dict[str, Array]:
    """What a host gets for the graph's outputs from the start of a stream: ``[B, steps, items, *item_shape]``."""
    found = dict(outputs)
    for spec in contract.output_specs:
        if spec.back_end is not None:
            frames = outputs[spec.name]
            tail = np.zeros((len(frames), spec.back_end.overlap), np.float32)
            found[spec.name] = to_samples(spec.back_end, tail, frames)[0]
    output = contract.output
    return by_step(contract, found, found[output.name].shape[1] // output.step_items)


def _items(spec: InputSpec, given: Sequences, start: int, stop: int) -> Array:
    value = given.data[spec.name]
    if isinstance(spec.front_end, Stft):
        tail = np.zeros((len(value), spec.front_end.overlap), np.float32)
        value = to_frames(spec.front_end, tail, value)[0]
    zeros = np.zeros((len(value), spec.context, *value.shape[2:]), value.dtype)
    return np.concatenate([zeros, value], axis=1)[:, start * spec.takes : stop * spec.takes + spec.context]


def _as_graph(tensor: TensorSpec, value: Array, time: int) -> Tensor:
    filled = np.empty(tensor.shape(Sizes(len(value), time)), value.dtype)
    tensor.leading(filled)[...] = value
    return torch.from_numpy(filled).to(TORCH_DTYPES[tensor.dtype])


def _array(value: Tensor) -> Array:
    return np.asarray((value.float() if value.is_floating_point() else value).numpy())
