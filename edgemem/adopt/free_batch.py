"""A file that is fixed to one stream, for several: the graph often computes them too, if its inputs allow it."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from edgemem.adopt.fold import forget_sizes
from edgemem.adopt.proof import rows_are_independent
from edgemem.adopt.read import GraphTensor
from edgemem.adopt.session import Graph
from edgemem.adopt.subject import State, Subject
from edgemem.adopt.tensors import DataInput, dims_of
from edgemem.errors import ExportError

_BATCH = "batch"


def with_free_batch(subject: Subject) -> Subject | None:
    """The same graph for any number of streams, if their rows are shown to be independent; else ``None``.

    Data must have a batch axis of size 1. Of a state, the first axis of size 1 is tried.
    """
    owners = (*subject.held, *subject.states)
    axes = {data.name: data.batch_axis for data in subject.data}
    axes |= {owner.tensor.name: _first_of_size_1(owner.tensor) for owner in owners}
    if any(data.has_free_batch for data in subject.data) or any(axis is None for axis in axes.values()):
        return None
    model = subject.model.clone()
    forget_sizes(model)
    for value in model.graph.inputs:
        if (axis := axes.get(value.name or "")) is not None and value.shape is not None:
            value.shape = ir.Shape([_BATCH if at == axis else size for at, size in enumerate(value.shape)])
    for value in model.graph.outputs:
        value.shape = None
    try:
        freed = replace(
            subject,
            model=model,
            graph=Graph(model, "the graph", subject.folder),
            data=tuple(_free(data) for data in subject.data),
            held=tuple(State(_named(h.tensor, axes[h.tensor.name]), axes[h.tensor.name]) for h in subject.held),
            states=tuple(State(_named(s.tensor, axes[s.tensor.name]), axes[s.tensor.name]) for s in subject.states),
        )
    except ExportError:
        return None
    return freed if rows_are_independent(freed) else None


def _first_of_size_1(tensor: GraphTensor) -> int | None:
    return next((at for at, size in enumerate(dims_of(tensor)) if size == 1), None)


def _free(data: DataInput) -> DataInput:
    return replace(data, tensor=_named(data.tensor, data.batch_axis))


def _named(tensor: GraphTensor, axis: int | None) -> GraphTensor:
    return replace(tensor, dims=tuple(_BATCH if at == axis else size for at, size in enumerate(dims_of(tensor))))
