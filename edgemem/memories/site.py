"""Marks in a trace: one call of an operator, such as ``MemoryAttention``, computes what lies between them.

Outside a trace for ONNX the marks are nothing. In a trace each is a node of edgemem's domain that gives on its first
input; the export takes them out again, and writes a second form of the graph with the operator in their place
(:mod:`edgemem.export.passes.native_form`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from edgemem.memories.base import Dims, Memory, SlotMemory, States
from edgemem.memories.kinds.window import Window
from edgemem.memories.summary import Summary

DOMAIN = "edgemem"
ATTENTION = "MemoryAttention"
BEGIN, END = "Begin", "End"
OPERATOR, VIEW, UNUSED = "operator", "view", "unused"  # attributes of the marks

_WIDEST = 512
"""Of heads that the operators take: ``WIDTH_MAX`` in runtimes/native/kernels.h."""

View = Literal["", "reshape", "steps_last"]
"""What is done with the operator's ``[B, T, C]``: nothing, a reshape, or time steps become the last axis."""


@dataclass(frozen=True)
class SiteAttributes:
    """The attributes of the operator.

    Attributes:
        memories: Kinds in the order of their states, ``"window,cumulative:log_count"``.
        heads: Query heads.
        kv_heads: Key/value heads.
        scale: Factor of the scores.
        softcap: ``c`` of ``c · tanh(score / c)``; 0: none.
        rotate: Whether queries and keys come without rotation; else rotated to their positions, if positions rotate.
        heads_first: Whether queries, keys and values are three tensors ``[B, H, T, D]``, or one ``[B, T, C]``.
        window: The window that other memories of the layer begin behind.
        rotary_start: First of the elements of a head that are rotated.
        neighbours: Whether the elements ``(2f, 2f + 1)`` are rotated together, rather than ``(f, f + F)``.
        by_slot: Whether sinks have positions by slot.
    """

    memories: str
    heads: int
    kv_heads: int
    scale: float
    softcap: float
    rotate: int
    heads_first: int
    window: int
    rotary_start: int = 0
    neighbours: int = 0
    by_slot: int = 1


@dataclass(frozen=True)
class LayerSite:
    """What the operator needs of a layer's memories.

    Attributes:
        kinds: As :attr:`SiteAttributes.memories`.
        states: The states' names in the operator's order.
        inputs: The same, with the parameters that follow the states of a memory.
        bias: Added to the scores of summaries, ``[S, Hq]``; ``None`` where there are none.
    """

    kinds: str
    states: tuple[str, ...]
    inputs: tuple[str | Tensor, ...]
    bias: Tensor | None

    def given(self, past: States) -> list[Tensor]:
        """States and parameters, in the operator's order."""
        return [past[entry] if isinstance(entry, str) else entry for entry in self.inputs]


def layer_site(
    memories: Mapping[str, Memory], prefix: str = "", x: Tensor | None = None, written: Tensor | None = None
) -> LayerSite | None:
    """How the operator computes a layer's softmax; ``None``: it cannot.

    It can where there is at most one window, and it has all memories.

    Args:
        memories: Those with slots, by name.
        prefix: Begins the names of their states.
        x: The layer's normalised input ``[B, T, C]``, at which gates look; ``None`` where it is not at hand.
        written: What the layer's ``gated_delta`` writes ``[B, H, T, D]``; ``None`` where there is none.
    """
    # The operator has the window first.
    ordered = sorted(memories.items(), key=lambda item: not isinstance(item[1], Window))
    if sum(isinstance(memory, Window) for memory in memories.values()) > 1:
        return None
    kinds: list[str] = []
    states: list[str] = []
    inputs: list[str | Tensor] = []
    biases: list[Tensor] = []
    for name, memory in ordered:
        native = memory.native(x, written) if isinstance(memory, SlotMemory) else None
        if native is None:
            return None
        kind, parameters = native
        own = [f"{prefix}{name}.{spec.name}" for spec in memory.states()]
        kinds.append(kind)
        states.extend(own)
        inputs.extend((*own, *parameters))
        if isinstance(memory, Summary):
            biases.append(memory.head_bias())
    return LayerSite(",".join(kinds), tuple(states), tuple(inputs), torch.stack(biases) if biases else None)


def begin_recurrence(
    operator: str, given: Tensor, inputs: Sequence[Tensor | None], attributes: Mapping[str, int | float]
) -> Tensor:
    """Mark where an operator takes over a recurrence.

    Args:
        operator: Its name.
        given: A tensor that what lies between the marks uses.
        inputs: The operator's inputs in its order.
        attributes: Its attributes.

    Returns:
        ``given``.
    """
    return _mark(BEGIN, [given, *inputs], {OPERATOR: operator, **attributes})


def begin(inputs: Sequence[Tensor | None], attributes: SiteAttributes, given: Tensor | None = None) -> Tensor:
    """Mark where the operator takes over.

    Args:
        inputs: The operator's inputs in its order; the first are the queries.
        attributes: Its attributes.
        given: A tensor that what lies between the marks uses; ``None``: the queries.

    Returns:
        ``given``.
    """
    queries = inputs[0]
    assert queries is not None
    return begin_recurrence(ATTENTION, queries if given is None else given, inputs, asdict(attributes))


def end(outputs: Sequence[Tensor], view: View = "", unused: int = 0) -> Tensor:
    """Mark where it ends: ``outputs`` are the operator's, in its order; the first is what was read, and is returned.

    Args:
        outputs: What the operator is to give.
        view: How the first becomes what stands here, if the operator gives it in another shape.
        unused: How many more outputs the operator has.
    """
    return _mark(END, outputs, ({VIEW: view} if view else {}) | ({UNUSED: unused} if unused else {}))


def is_marking() -> bool:
    """Whether a graph is being traced for ONNX."""
    return torch.onnx.is_in_onnx_export()


def marks_layers(dims: Dims) -> bool:
    """Whether a graph is being traced for ONNX, and operators take heads of such a width and dtype."""
    return is_marking() and dims.dtype == "float32" and dims.head_dim <= _WIDEST


def _mark(name: str, inputs: Sequence[Tensor | None], attributes: Mapping[str, int | float | str]) -> Tensor:
    first = inputs[0]
    assert first is not None
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}", inputs, dict(attributes), dtype=first.dtype, shape=first.shape, version=1
    )
