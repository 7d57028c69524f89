"""Every tensor of a graph, derived from its contract: the one list that engines, exporter and checks iterate over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from edgemem.contract.axes import Axis, Sizes, insert_axes
from edgemem.contract.specs import InputSpec, OutputSpec, StateSpec

if TYPE_CHECKING:
    from edgemem.contract.contract import Contract

POSITION = "position"
OUTPUT_INDICES = "output_indices"


class Times(Protocol):
    """The calls that a graph takes: a :class:`~edgemem.bundle.GraphFile`, for instance."""

    @property
    def min_time(self) -> int:
        """Fewest steps of one call."""

    @property
    def max_time(self) -> int:
        """Most steps of one call."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its name in the graph.
        dtype: Element type.
        axes: A number, or what decides the size.
        role: ``"data"``, ``"held"``, ``"fixed"``, ``"position"`` or ``"output_indices"`` (inputs), ``"output"``, or
            ``"state"`` (both).
        spec: The declaration it derives from; ``None`` for positions and output indices.
    """

    name: str
    dtype: str
    axes: tuple[int | Axis, ...]
    role: Literal["data", "held", "fixed", "position", "output_indices", "output", "state"]
    spec: InputSpec | OutputSpec | StateSpec | None = None

    def shape(self, sizes: Sizes) -> tuple[int, ...]:
        """Its shape in one call."""
        return tuple(axis if isinstance(axis, int) else axis.size(sizes) for axis in self.axes)

    def axis(self, *kinds: str) -> int | None:
        """Index of the axis of one of these kinds, or ``None``."""
        found = (at for at, axis in enumerate(self.axes) if isinstance(axis, Axis) and axis.kind in kinds)
        return next(found, None)

    @property
    def batch_axis(self) -> int | None:
        """Index of the batch axis, or ``None``."""
        return self.axis("batch")

    @property
    def time_axis(self) -> int | None:
        """Index of the axis of time steps, or of those selected, or ``None``."""
        return self.axis("time", "selected")

    def leading(self, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """A view of the graph's tensor with the batch axis first and, but for a state, the time axis second.

        An axis that the tensor lacks has size 1.
        """
        named = self.role in ("data", "output")
        order = [self.batch_axis, *([self.time_axis] if named else [])]
        rest = [at for at in range(array.ndim) if at not in order]
        view = array.transpose([*(at for at in order if at is not None), *rest])
        for at, axis in enumerate(order):
            if axis is None:
                view = np.expand_dims(view, at)
        return view


def graph_inputs(contract: Contract, graph: Times) -> tuple[TensorSpec, ...]:
    """See :meth:`Contract.inputs`."""
    return tuple(_inputs(contract, graph))


def graph_outputs(contract: Contract, graph: Times) -> tuple[TensorSpec, ...]:
    """See :meth:`Contract.outputs`."""
    return tuple(_outputs(contract, graph))


def _inputs(contract: Contract, graph: Times) -> Iterator[TensorSpec]:
    batch = _batch(contract)
    for spec in contract.input_specs:
        axes = insert_axes(spec.shape, {"batch": spec.batch_axis, "time": spec.time_axis})
        time = _time(graph, spec.takes, spec.context)
        yield TensorSpec(spec.name, spec.dtype, _put(axes, batch=batch, time=time), spec.role, spec)
        if spec is contract.input:  # where version 1 had them: the order of a graph's inputs is part of its interface
            if contract.position == "input":
                yield TensorSpec(POSITION, "int64", (batch,), "position")
            if contract.output_indices:
                yield TensorSpec(OUTPUT_INDICES, "int64", (Axis("selected"),), "output_indices")
    for state in contract.states:
        yield TensorSpec(state.input_name, state.dtype, _state_axes(state, batch, Axis("length")), "state", state)


def _outputs(contract: Contract, graph: Times) -> Iterator[TensorSpec]:
    batch = _batch(contract)
    for spec in contract.output_specs:
        axes = insert_axes(spec.shape, {"batch": spec.batch_axis, "time": spec.time_axis})
        time = Axis("selected") if contract.output_indices else _time(graph, spec.gives, 0)
        yield TensorSpec(spec.name, spec.dtype, _put(axes, batch=batch, time=time), "output", spec)
    for state in contract.states:
        new = _state_axes(state, batch, Axis("new_length"))
        if state.update == "append":
            new = (*new[:2], _time(graph, 1, 0), new[3])
        yield TensorSpec(state.output_name, state.dtype, new, "state", state)


def _batch(contract: Contract) -> Axis:
    return Axis("batch", only=1 if contract.one_stream else None)


def _time(graph: Times, times: int, plus: int) -> Axis:
    only = graph.max_time * times + plus if graph.min_time == graph.max_time else None
    return Axis("time", times, plus, only)


def _put(axes: Iterable[int | str], **named: Axis) -> tuple[int | Axis, ...]:
    return tuple(named[axis] if isinstance(axis, str) else axis for axis in axes)


def _state_axes(state: StateSpec, batch: Axis, length: Axis) -> tuple[int | Axis, ...]:
    axes: list[int | Axis] = [length if size is None else size for size in state.shape]
    if state.batch_axis is not None:
        axes.insert(state.batch_axis, batch)
    return tuple(axes)


@dataclass(frozen=True)
class FoundTensor:
    """One input or output as an engine reports it; ``None`` for an axis that has no fixed size there."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


def difference(kind: Literal["input", "output"], found: Iterable[FoundTensor], wanted: Sequence[TensorSpec]) -> str:
    """The first way in which a graph's inputs or outputs differ from its contract, in words; ``""`` where they agree.

    The size of an output's axis need not have been inferred. A time axis that one graph fixes may be free in the file.
    """
    have = {tensor.name: tensor for tensor in found}
    want = {tensor.name: tensor for tensor in wanted}
    if have.keys() != want.keys():
        missing, extra = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
        return f"its {kind}s lack {missing or 'nothing'} and add {extra or 'nothing'}"
    for name, tensor in want.items():
        got = have[name]
        if got.dtype != tensor.dtype:
            return f"{kind} {name!r} is {got.dtype}, the contract has {tensor.dtype}"
        fits = len(got.shape) == len(tensor.axes) and all(
            _fits(size, axis, kind) for size, axis in zip(got.shape, tensor.axes, strict=True)
        )
        if not fits:
            axes = [axis if isinstance(axis, int) or axis.only is None else axis.only for axis in tensor.axes]
            shape = ["any" if size is None else size for size in got.shape]
            return f"{kind} {name!r} has shape {_shown(shape)}, the contract has {_shown(axes)}"
    return ""


def _fits(size: int | None, axis: int | Axis, kind: str) -> bool:
    if isinstance(axis, int):
        return size == axis or (kind == "output" and size is None)
    return size is None or size == axis.only


def _shown(shape: Iterable[object]) -> str:
    return f"[{', '.join(map(str, shape))}]"
