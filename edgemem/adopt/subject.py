"""The model under adoption: its graph, what each of its tensors is, and calls to try it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgemem.adopt.metadata import with_metadata
from edgemem.adopt.options import AdoptOptions
from edgemem.adopt.pairing import Pair, similarity, unpaired
from edgemem.adopt.read import GraphTensor, graph_tensors
from edgemem.adopt.session import Calls, Graph
from edgemem.adopt.tensors import DataInput, data_input, dims_of, initial_values, random_values, state_batch_axis
from edgemem.errors import ExportError

Array = NDArray[Any]


@dataclass(frozen=True)
class State:
    """A state input, with the place of its batch axis."""

    tensor: GraphTensor
    batch_axis: int | None


@dataclass(frozen=True)
class Subject:
    """A model whose inputs have roles; its states may not be paired yet.

    Attributes:
        model: The model as it was read.
        graph: The same, in ONNX Runtime.
        folder: Where its external data lie.
        data: Inputs that every step consumes.
        held: Inputs that a stream is given once.
        fixed: Inputs that are constants.
        states: Inputs that the step before computed.
        outputs: Every output, in the graph's order.
        initial: Values of states at position 0.
        pairs: State inputs and outputs.
        results: Outputs that are no states.
    """

    model: ir.Model
    graph: Calls
    folder: Path
    data: tuple[DataInput, ...]
    held: tuple[State, ...]
    fixed: Mapping[str, Array]
    states: tuple[State, ...]
    outputs: tuple[str, ...]
    initial: Mapping[str, Any]
    pairs: tuple[Pair, ...] = ()
    results: tuple[str, ...] = ()

    @property
    def has_free_batch(self) -> bool:
        """Whether every input has a batch axis whose size a call chooses."""
        owners = (*self.held, *self.states)
        return all(data.has_free_batch for data in self.data) and all(o.batch_axis is not None for o in owners)

    @property
    def has_free_time(self) -> bool:
        """Whether a call chooses the number of steps."""
        return all(data.has_free_time for data in self.data)

    def random_data(self, batch: int, time: int, generator: np.random.Generator) -> dict[str, Array]:
        """Data for a call of ``time`` steps."""
        return {d.name: random_values(d.tensor, d.shape(batch, time), generator) for d in self.data}

    def random_held(self, batch: int, generator: np.random.Generator) -> dict[str, Array]:
        """Held inputs of ``batch`` streams."""
        return {h.tensor.name: random_values(h.tensor, _shape(h, batch), generator) for h in self.held}

    def first_states(self, batch: int) -> dict[str, Array]:
        """Every state at position 0, by the name of its input."""
        return {s.tensor.name: initial_values(s.tensor, s.batch_axis, batch, self.initial) for s in self.states}

    def call(self, *inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Every output of one call; fixed inputs are added."""
        return self.graph.run({name: value for part in (*inputs, self.fixed) for name, value in part.items()})

    def next_states(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        """What a call makes of the states, by the names of their inputs."""
        return {pair.input: outputs[pair.output] for pair in self.pairs}

    def with_pairs(self, pairs: Sequence[Pair]) -> Subject:
        """The same model, its states paired like this."""
        new_values = {pair.output for pair in pairs}
        results = tuple(name for name in self.outputs if name not in new_values)
        return replace(self, pairs=tuple(pairs), results=results)


def _shape(owner: State, batch: int) -> tuple[int, ...]:
    sizes = dims_of(owner.tensor)
    return tuple(batch if at == owner.batch_axis else int(size or 1) for at, size in enumerate(sizes))


def subject_of(model: ir.Model, where: str, folder: Path, options: AdoptOptions) -> Subject:
    """Give every input of a model its role.

    Raises:
        ExportError: A name is not in the graph, a role does not fit, or ONNX Runtime cannot load the graph.
    """
    inputs, outputs = graph_tensors(model)
    by_name = {tensor.name: tensor for tensor in inputs}
    _check_names(options, by_name, [tensor.name for tensor in outputs], where)
    elsewhere = {*options.held, *options.fixed}
    names = options.inputs or _first_data(inputs, outputs, elsewhere | set(options.states))
    if options.use_metadata:
        options = with_metadata(options, model.metadata_props, by_name[names[0]])
    data = tuple(data_input(by_name[name], options, at == 0) for at, name in enumerate(names))
    states, held = [], []
    for tensor in inputs:
        if tensor.name in options.held:
            held.append(State(tensor, _held_batch_axis(tensor, data)))
        elif tensor.name not in (*names, *options.fixed):
            states.append(State(tensor, state_batch_axis(tensor, data)))
    if not states:
        raise ExportError(
            f"{where} has no state: its inputs are {', '.join(by_name)}.",
            hint="A model without state needs no bundle. If one of these is a state, do not name it as data.",
        )
    if unknown := sorted(set(options.initial) - {state.tensor.name for state in states}):
        raise ExportError(f"--initial has {unknown[0]}, which is no state; states are {_names(states)}.")
    fixed = {name: _constant(by_name[name], value) for name, value in options.fixed.items()}
    return Subject(
        model, Graph(model, where, folder), folder, data, tuple(held), fixed, tuple(states),
        tuple(tensor.name for tensor in outputs), options.initial,
    )  # fmt: skip


def refuse_strangers(subject: Subject, options: AdoptOptions) -> None:
    """Refuse inputs that can be no state: no output that is left has their dtype and as many axes.

    Raises:
        ExportError: Names the input, and what it may be.
    """
    taken = {*options.outputs, *options.states.values()}
    outputs = [tensor for tensor in graph_tensors(subject.model)[1] if tensor.name not in taken]
    kinds = {(tensor.dtype, None if tensor.dims is None else len(tensor.dims)) for tensor in outputs}
    for state in subject.states:
        tensor = state.tensor
        if tensor.name not in options.states and kinds.isdisjoint(
            {(tensor.dtype, None), (tensor.dtype, len(dims_of(tensor)))}
        ):
            raise unpaired(tensor.name, str(tensor), [str(output) for output in outputs])


def _names(states: Sequence[State]) -> str:
    return ", ".join(state.tensor.name for state in states)


def _check_names(options: AdoptOptions, inputs: Mapping[str, GraphTensor], outputs: Sequence[str], where: str) -> None:
    for name in (*options.inputs, *options.states, *options.held, *options.fixed):
        if name not in inputs:
            raise ExportError(f"{where} has no input {name!r}; it has {', '.join(inputs)}.")
    for name in (*options.outputs, *options.states.values()):
        if name not in outputs:
            raise ExportError(f"{where} has no output {name!r}; it has {', '.join(outputs)}.")
    if twice := sorted(set(options.outputs) & set(options.states.values())):
        raise ExportError(f"the output {twice[0]} is named as a result and as a state: it can be one of these.")


def _first_data(inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor], elsewhere: set[str]) -> tuple[str, ...]:
    """The input that is the data where the user does not say: the first whose name is not that of a state."""
    free = [tensor.name for tensor in inputs if tensor.name not in elsewhere]
    named = [n for n in free if not any(similarity(n, out.name) == 1.0 and n != out.name for out in outputs)]
    if not free:
        raise ExportError("no input is left that could be the data.", hint="Name it with --input.")
    return ((named or free)[0],)


def _held_batch_axis(tensor: GraphTensor, data: Sequence[DataInput]) -> int | None:
    free = [at for at, size in enumerate(dims_of(tensor)) if not isinstance(size, int)]
    if len(free) > 1:
        raise ExportError(f"the held input {tensor} has no fixed size: {len(free)} axes are free.")
    if not free and data[0].batch_axis is not None and not data[0].has_free_batch and dims_of(tensor)[:1] == (1,):
        return 0
    return free[0] if free else None


def _constant(tensor: GraphTensor, value: Any) -> Array:
    """A fixed input's value.

    Raises:
        ExportError: It is not a number, or has another shape.
    """
    dims = dims_of(tensor)
    try:
        found = np.asarray(value, dtype=tensor.dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ExportError(f"--fixed {tensor.name}={value!r} is not a {tensor.dtype}: {error}") from error
    if found.ndim == 0:
        found = np.broadcast_to(found, tuple(size if isinstance(size, int) else 1 for size in dims)).copy()
    if found.ndim != len(dims):
        raise ExportError(f"--fixed {tensor.name} has shape {list(found.shape)}, the graph has {tensor}.")
    return found
