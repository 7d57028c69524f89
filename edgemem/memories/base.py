"""What a memory is: it declares its states, and turns a chunk and its past into slots for attention.

Symbols::

    B streams    T time steps of the call    D width of a head
    Hq query heads    H key/value heads    G = Hq / H query heads for each key/value head
    R = G·T      the rows of a head's score matrix: all queries that read the same keys
    S            slots: the columns
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.dtypes import FloatDType
from edgemem.errors import ConfigError
from edgemem.memories.clock import Clock, rotate

_MOST = 2**31 - 1

States = Mapping[str, Tensor]


@dataclass(frozen=True)
class Dims:
    """The sizes that a layer gives to its memories.

    Attributes:
        model: Width of the residual stream.
        heads: Query heads.
        kv_heads: Key/value heads.
        head_dim: Width of a head.
        window: Length of the layer's attention window; 0 if it has none. Memories of what has left the window
            (sinks, compressed) start where it ends.
        theta: Base of the rotary frequencies.
        dtype: Of queries, keys and values, and of the states that store them unchanged.
    """

    model: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int = 0
    theta: float = 10000.0
    dtype: FloatDType = "float32"

    @property
    def groups(self) -> int:
        """Query heads for each key/value head."""
        return self.heads // self.kv_heads

    @property
    def scale(self) -> float:
        """The factor of the scores, ``D^-1/2`` (Vaswani et al. 2017, eq. 1)."""
        return float(self.head_dim**-0.5)


@dataclass
class Chunk:
    """One layer's part of a call.

    Attributes:
        clock: Positions, masks and phases.
        x: The layer's normalised input, float32 ``[B, T, C]``; learned gates look at it.
        q: Queries, neither scaled nor rotated ``[B, H, R, D]``.
        q_rotated: The same, rotated to their positions and scaled by ``D^-1/2``.
        k_rotated: Keys, rotated ``[B, H, T, D]``.
        v: Values ``[B, H, T, D]``.
        pairs: What a summary averages: the H heads' keys, not rotated, then their values, float32 ``[B, 2H, T, D]``.
        dims: The layer's sizes.
        written: What the layer's first ``gated_delta`` wrote at each step, float32 ``[B, H, T, D]``; ``None`` before it
            ran.
        marked: Queries, keys and values side by side ``[B, T, (Hq + 2H) D]``, where an operator may take them
            (:mod:`edgemem.memories.site`); ``None`` elsewhere.
    """

    clock: Clock
    x: Tensor
    q: Tensor
    q_rotated: Tensor
    k_rotated: Tensor
    v: Tensor
    pairs: Tensor
    dims: Dims
    written: Tensor | None = field(default=None, kw_only=True)
    marked: Tensor | None = field(default=None, kw_only=True)

    def rows(self, per_time: Tensor) -> Tensor:
        """Repeat ``[B, H, T, ...]`` for the ``G`` query heads of each key/value head: ``[B, H, R, ...]``."""
        if self.dims.groups == 1:
            return per_time
        return per_time.repeat(1, 1, self.dims.groups, *([1] * (per_time.dim() - 3)))

    @property
    def q_scaled(self) -> Tensor:
        """Queries, scaled by ``D^-1/2``, not rotated ``[B, H, R, D]``."""
        return self.q * self.dims.scale

    def rotated_to(self, positions: Tensor, key: object) -> Tensor:
        """The scaled queries rotated to ``positions`` [B, T] instead of their own: ``[B, H, R, D]``."""
        cos, sin = self.clock.rotary(positions, key, self.dims.head_dim, self.dims.theta)
        return rotate(self.q_scaled, self.rows(cos), self.rows(sin))


class Slots(NamedTuple):
    """The slots that a memory adds to the layer's softmax.

    Attributes:
        scores: ``[B, H, R, S]``, in any floating-point dtype.
        live: Which slots a query may see, bool ``[B or 1, 1 or H, T, S]``; ``None`` where it may see all.
        read: Turns the softmax's share ``[B, H, R, S]`` into the values' weighted sum ``[B, H, R, D]``.
    """

    scores: Tensor
    live: Tensor | None
    read: Callable[[Tensor], Tensor]


def shared_slots(q: Tensor, keys: Tensor, values: Tensor, live: Tensor | None) -> Slots:
    """Slots that all queries of a call share: ``q`` [B, H, R, D], ``keys`` and ``values`` [B, H, S, D]."""
    return Slots(q @ keys.transpose(-1, -2), live, lambda share: share @ values)


@dataclass(frozen=True)
class About:
    """What the documentation says about a memory. ``make docs`` writes it to docs/memories.md.

    Attributes:
        formula: ``Mem`` at step ``i``, in Markdown.
        use: What it is good for.
        nbytes: Bytes of its state in float32, as an expression of ``H`` key/value heads, their width ``D``, the window
            ``W``, the position ``i``, and the symbols of its options. The tests compare it with the states.
        example: The memories of a small layer that uses it. The tests export and compile this layer.
        options: Meaning of each option, in Markdown. One that begins with a symbol (``"`n`, ..."``) defines it.
    """

    formula: str
    use: str
    nbytes: str
    example: tuple[Mapping[str, Any], ...]
    options: Mapping[str, str] = field(default_factory=dict)


class Memory(nn.Module, ABC):
    """A memory of fixed size. (The only exception is ``full``, the baseline.)

    Subclasses take ``dims`` and their own options as keyword arguments, and register themselves with
    :func:`~edgemem.memories.register_memory` under the name that configurations use.
    """

    type_name: ClassVar[str]
    about: ClassVar[About | None] = None
    beside: ClassVar[str | None] = None
    """A type that must be in the same list, and runs first: this memory reads what it leaves in the :class:`Chunk`.

    Matrix memories run before those with slots.
    """

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims

    @abstractmethod
    def states(self) -> tuple[StateSpec, ...]:
        """The tensors to carry, under names of one part: ``k``, ``mean``."""

    @property
    def max_chunk(self) -> int | None:
        """Most time steps of one call that continues from a state; ``None`` for any number."""
        rings = [state.window for state in self.states() if state.window is not None]
        return min(rings, default=None)


def own_states(name: str, memory: Memory, past: States | None) -> States | None:
    """The states of one memory, by their names in it; ``past`` has them behind ``name`` and a dot."""
    return None if past is None else {spec.name: past[f"{name}.{spec.name}"] for spec in memory.states()}


class SlotMemory(Memory):
    """A memory that softmax attention reads slot by slot."""

    @property
    def always_seen(self) -> bool:
        """Whether every query, the first one too, sees at least one slot."""
        return False

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]] | None:
        """Its name in the operator ``MemoryAttention``, and the parameters that follow its states there.

        ``None``: the operator does not have it.

        Args:
            x: The layer's normalised input ``[B, T, C]``; ``None`` where it is not at hand.
            written: What the layer's ``gated_delta`` writes ``[B, H, T, D]``; ``None`` where there is none.
        """
        return None

    @abstractmethod
    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """The slots that the chunk's queries see, and the new value (or the new entries) of every state.

        Args:
            chunk: Queries, keys and values of the call.
            past: The states; ``None`` means the initial ones, for a call that starts at position 0.
        """


class Operator(NamedTuple):
    """The operator that computes a matrix memory: one of :mod:`edgemem.runtimes.native`.

    Attributes:
        name: Its name.
        inputs: What stands between the layer's queries, keys and values ``[B, T, (Hq + 2H) D]`` and the states.
        attributes: Its attributes.
    """

    name: str
    inputs: tuple[Tensor | None, ...]
    attributes: Mapping[str, int | float]


class MatrixMemory(Memory):
    """A memory with no slots: it is read as a whole, and a learned gate mixes the read in."""

    def operator(self, x: Tensor, clock: Clock) -> Operator | None:
        """The operator that gives the reads ``[B, T, Hq D]``, the new states, and what was written ``[B, T, H D]``.

        ``None``: there is none. What was written comes from those that set :attr:`Chunk.written`.

        Args:
            x: The layer's normalised input ``[B, T, C]``.
            clock: Time of the call.
        """
        return None

    @abstractmethod
    def forward(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The read for every query ``[B, H, R, D]``, and the new value of every state."""


def is_number(value: object) -> bool:
    """Whether ``value`` is an int or a float, and neither a truth value nor infinite nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def at_least(owner: str, option: str, value: int, least: int) -> int:
    """``value``, if it is an integer of ``least`` or more, and not larger than any memory could be.

    Raises:
        ConfigError: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"memory {owner!r}: {option} must be an integer of {least} or more, got {value!r}.")
    if value > _MOST:
        raise ConfigError(f"memory {owner!r}: {option} must be {_MOST:,} or less, got {value!r}.")
    return value
