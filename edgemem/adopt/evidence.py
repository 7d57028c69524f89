"""What is at hand to tell one pairing of states from another: longer calls, a sequence form, a recording."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.adopt.by_hand import ByHand, hand_stream, random_stream
from edgemem.adopt.proof import Evidence, difference
from edgemem.adopt.read import GraphTensor, graph_tensors, read_model
from edgemem.adopt.session import Graph
from edgemem.adopt.subject import Subject
from edgemem.adopt.tensors import dims_of
from edgemem.contract import Contract
from edgemem.errors import ExportError
from edgemem.runtimes.recorded import read_recording

Array = NDArray[Any]
LONG_CALL = "longer calls"
_STEPS, _CALL = 24, 6


def long_calls(contract: Contract, steps: int = _STEPS, call: int = _CALL) -> Evidence:
    """Calls of several steps give what single steps give: the graph is its own sequence form."""

    def error(subject: Subject) -> float:
        items = random_stream(contract, subject, steps, 2 if contract.has_batches else 1)
        try:
            long = hand_stream(subject, contract, items, steps, call)
        except ExportError:
            return float("inf")
        return _worst(hand_stream(subject, contract, items, steps, 1), long)

    return Evidence(LONG_CALL, error, is_binding=False)


def recording(path: Path, contract: Contract) -> Evidence:
    """Recorded inputs and outputs.

    Raises:
        EdgememError: The file is not a recording for this contract.
    """
    arrays = read_recording(path, contract)
    spec = contract.input
    steps = arrays[spec.name].shape[1] // spec.step_items
    wanted = {spec.name: arrays[spec.name] for spec in contract.output_specs}

    def error(subject: Subject) -> float:
        return _worst(hand_stream(subject, contract, arrays, steps, 1), wanted)

    return Evidence(f"the recording {path.name}", error)


def sequence_form(path: Path, subject: Subject, contract: Contract, steps: int = 4 * _STEPS) -> Evidence:
    """A graph that computes a whole sequence at once, from states at position 0.

    Raises:
        ExportError: It cannot be read, or has no input that takes the steps' data one after the other.
    """
    model = read_model(path)
    inputs, _ = graph_tensors(model)
    graph = Graph(model, path.name, path.parent)
    items = random_stream(contract, subject, steps)
    frames = _frames(subject, contract, items, steps)
    data, rest = inputs[0], inputs[1:]
    joined = _joined(data, frames, subject)
    feeds = {data.name: joined, **{tensor.name: _at_rest(tensor, subject) for tensor in rest}}
    wanted = next(iter(graph.run(feeds).values()))

    def error(tried: Subject) -> float:
        got = hand_stream(tried, contract, items, steps, 1)[contract.output.name]
        if got.size != wanted.size:
            raise ExportError(
                f"{path.name} gives {list(wanted.shape)} for {steps} steps, the steps give {list(got.shape)}."
            )
        return difference(got.reshape(-1), wanted.reshape(-1))

    return Evidence(f"the sequence form {path.name}", error)


def _frames(subject: Subject, contract: Contract, items: Mapping[str, Array], steps: int) -> list[Array]:
    """What the graph is given at each step, for its first data input."""
    hand = ByHand(subject, contract, items)
    spec = contract.input
    return [
        hand.framed(subject.data[0], spec, items[spec.name][:, at * spec.step_items : (at + 1) * spec.step_items])
        for at in range(steps)
    ]


def _joined(tensor: GraphTensor, frames: list[Array], subject: Subject) -> Array:
    """The frames one after the other, along the axis of the sequence's input that is free to hold them."""
    dims = dims_of(tensor)
    shape = frames[0].shape
    first = subject.data[0].time_axis
    for axis in sorted(range(len(dims)), key=lambda at: at != first):
        others = [at for at in range(len(dims)) if at != axis]
        fits = len(dims) == len(shape) and all(dims[at] == shape[at] for at in others if isinstance(dims[at], int))
        if fits and not isinstance(dims[axis], int) and (axis != first or not subject.data[0].context):
            return np.concatenate(frames, axis=axis)
    raise ExportError(
        f"the sequence form takes {tensor}, in which steps of {list(shape)} cannot follow each other.",
        hint="Use --recorded with recorded inputs and outputs instead.",
    )


def _at_rest(tensor: GraphTensor, subject: Subject) -> Array:
    if tensor.name in subject.fixed:
        return subject.fixed[tensor.name]
    if tensor.name in subject.initial:
        return np.asarray(subject.initial[tensor.name], tensor.dtype)
    return np.zeros([size if isinstance(size, int) else 1 for size in dims_of(tensor)], tensor.dtype)


def _worst(got: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    return max(difference(got[name], wanted[name]) for name in wanted)
