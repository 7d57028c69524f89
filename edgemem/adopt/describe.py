"""The contract of an adopted graph, from what its inputs are and what its outputs were seen to be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.adopt.subject import State, Subject
from edgemem.adopt.tensors import DataInput, dims_of
from edgemem.contract import Contract, InputSpec, OutputSpec, OverlapAdd, StateSpec, initial_bytes
from edgemem.dtypes import DType
from edgemem.errors import ExportError

Array = NDArray[Any]
Shape = tuple[int, ...]
Seen = Mapping[tuple[int, int], Mapping[str, Array]]
"""Outputs by name, of calls by the numbers of their streams and steps."""


def describe(subject: Subject, seen: Seen, batches: bool, max_chunk: int) -> Contract:
    """The contract of a subject whose states are paired.

    Args:
        subject: The subject.
        seen: Outputs of calls, by the numbers of streams and steps; ``(1, 1)`` is one of them.
        batches: Whether several streams can advance in one call.
        max_chunk: Most steps of one call.

    Raises:
        ExportError: An output has no place for the items of a step.
    """
    shapes = {key: {name: value.shape for name, value in outputs.items()} for key, outputs in seen.items()}
    names: set[str] = set()
    has_batch = [*(d.batch_axis is not None for d in subject.data), *(s.batch_axis is not None for s in subject.states)]
    return Contract(
        input_specs=(*(data.spec() for data in subject.data), *(_held(held) for held in subject.held)),
        output_specs=tuple(_output(name, subject, shapes, str(seen[1, 1][name].dtype)) for name in subject.results),
        states=tuple(_state(subject, state, names) for state in subject.states),
        max_chunk=max_chunk,
        position="none",
        one_stream=any(has_batch) and not batches,
    )


def _held(held: State) -> InputSpec:
    shape = tuple(int(size or 1) for at, size in enumerate(dims_of(held.tensor)) if at != held.batch_axis)
    return InputSpec(held.tensor.name, shape, _dtype(held.tensor.dtype), role="held", batch_axis=held.batch_axis)


def _state(subject: Subject, state: State, names: set[str]) -> StateSpec:
    tensor = state.tensor
    pair = next(pair for pair in subject.pairs if pair.input == tensor.name)
    shape = tuple(int(size or 1) for at, size in enumerate(dims_of(tensor)) if at != state.batch_axis)
    initial: float | bytes = 0.0
    if tensor.name in subject.initial:
        initial = initial_bytes(np.asarray(subject.initial[tensor.name]).reshape(shape), tensor.dtype)
    name = re.sub(r"[^A-Za-z0-9_.]+|\.(?=\.|$)|^\.", "_", tensor.name)
    while name in names:
        name += "_"
    names.add(name)
    spec = StateSpec(name, shape, _dtype(tensor.dtype), initial=initial, batch_axis=state.batch_axis)
    return replace(spec, input=pair.input, output=pair.output)


def _output(
    name: str, subject: Subject, shapes: Mapping[tuple[int, int], Mapping[str, Shape]], dtype: str
) -> OutputSpec:
    one = shapes[1, 1][name]
    data = subject.data[0]
    batch = _growing(one, shapes.get((2, 1), {}).get(name))
    if batch is None and data.batch_axis is not None and one[data.batch_axis : data.batch_axis + 1] == (1,):
        batch = data.batch_axis
    time = _growing(one, shapes.get((1, 2), {}).get(name))
    if time is None or time == batch:
        time = _time_like(one, data, batch)
    if data.stft is not None:
        return _spectrum(name, one, data, batch, dtype)
    if data.overlap_add and name == subject.results[0]:
        return _frame(name, one, data, batch, dtype)
    shape = tuple(size for at, size in enumerate(one) if at not in (batch, time))
    gives = 1 if time is None else one[time]
    if 0 in one:
        raise ExportError(f"the output {name} of one step is empty: {list(one)}.")
    return OutputSpec(name, shape, _dtype(dtype), gives=gives, batch_axis=batch, time_axis=time)


def _spectrum(name: str, one: Shape, data: DataInput, batch: int | None, dtype: str) -> OutputSpec:
    """An output of frames like those of the input is turned into samples; another one stays as it is."""
    assert data.stft is not None
    rest = [at for at in range(len(one)) if at != batch]
    like_input = one == data.shape(1, 1)
    time = data.time_axis if like_input else next((at for at in rest if one[at] == 1), None)
    shape = tuple(size for at, size in enumerate(one) if at not in (batch, time))
    back_end = data.stft if like_input else None
    return OutputSpec(name, shape, _dtype(dtype), batch_axis=batch, time_axis=time, back_end=back_end)


def _frame(name: str, one: Shape, data: DataInput, batch: int | None, dtype: str) -> OutputSpec:
    """An output of one frame of samples, which overlaps with the next."""
    end = OverlapAdd(data.takes + data.context, data.takes)
    time = next((at for at, size in enumerate(one) if at != batch and size == 1), None)
    shape = tuple(size for at, size in enumerate(one) if at not in (batch, time))
    return OutputSpec(name, shape, _dtype(dtype), batch_axis=batch, time_axis=time, back_end=end)


def _growing(one: Shape, other: Shape | None) -> int | None:
    """The axis whose size differs between two calls."""
    if other is None or len(one) != len(other):
        return None
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), None)


def _time_like(one: Shape, data: DataInput, batch: int | None) -> int | None:
    """The time axis of an output of one step, by its place: where the input has it, or its last for samples."""
    rest = [at for at in range(len(one)) if at != batch]
    if data.time_axis is None or not rest:
        return None
    samples = data.spec().shape == ()
    if samples and (len(rest) == 1 or all(one[at] == 1 for at in rest[:-1])):
        return rest[-1]
    return next((at for at in (data.time_axis, *rest) if at in rest and one[at] == 1), None)


def _dtype(name: str) -> DType:
    return name  # type: ignore[return-value]


def probe_sizes(subject: Subject) -> Sequence[tuple[int, int]]:
    """Numbers of streams and steps of the calls that show where outputs have their axes."""
    batches = [(2, 1), (3, 1)] if subject.has_free_batch else []
    times = [(1, 2), (1, 3)] if subject.has_free_time else []
    both = [(2, 3)] if batches and times else []
    return [(1, 1), *batches, *times, *both]
