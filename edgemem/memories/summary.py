"""Summaries: one pair ``(k̄, v̄)`` that stands for many.

Symbols::

    W         pairs that a moving average covers
    β_a       weight of the pair of age a (0 is the newest)

A summary is one slot among others. Alone it is degenerate: a softmax over one score is 1, so the output is ``v̄`` for
every query. Keys are averaged before rotation (rotated ones would cancel), and the unrotated query scores them. All
sums are float32, whatever the model's precision. Keys and values are averaged alike, so they share one axis of 2H
heads.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.errors import ConfigError
from edgemem.memories.base import Chunk, Dims, SlotMemory, Slots, States, at_least

Bias = Literal["none", "learned", "log_count"]
BIAS = 'added to the slot\'s score: `"learned"` is a number for each head, 0 at first, and `"none"` adds nothing'
BIAS_COUNTED = f'{BIAS}. `"log_count"` adds `log n` for the `n` pairs that the slot stands for'

_FORGOTTEN = -80.0
"""Logarithm of a weight too small to matter. Smaller ones are float32 denormals, which processors multiply slowly."""


class Summary(SlotMemory):
    """One slot whose pair differs from query to query.

    Args:
        dims: Sizes of the layer.
        bias: What is added to the slot's score: nothing, a number learned for each query head (the default; 0 at
            first), or the logarithm of the number of pairs that the slot stands for.
    """

    has_count: ClassVar[bool] = True

    def __init__(self, dims: Dims, bias: Bias = "learned") -> None:
        super().__init__(dims)
        known = [kind for kind in get_args(Bias) if kind != "log_count" or self.has_count]
        if bias not in known:
            raise ConfigError(f"memory {self.type_name!r}: bias {bias!r} is not one of {', '.join(known)}.")
        self.bias_kind = bias
        self.bias = nn.Parameter(torch.zeros(dims.kv_heads, dims.groups)) if bias == "learned" else None

    def head_bias(self) -> Tensor:
        """What is added to the slot's score, ``[Hq]``, but for the logarithm of its count."""
        return torch.zeros(self.dims.heads) if self.bias is None else self.bias.flatten()

    @property
    def native_name(self) -> str:
        """Its name in the operator, with its option."""
        return f"{self.type_name}:log_count" if self.bias_kind == "log_count" else self.type_name

    @property
    def always_seen(self) -> bool:
        """A summary contains at least the query's own pair."""
        return True

    @abstractmethod
    def summarise(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The summary at every time step, float32 ``[B, 2H, T, D]``, and the new states."""

    def count(self, chunk: Chunk) -> Tensor:
        """How many pairs the summary stands for at every time step, float32 ``[B, 1, T, 1]``: all so far, ``i + 1``."""
        return chunk.clock.counts()

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """One slot for each query."""
        summary, new = self.summarise(chunk, past)
        keys, values = torch.split(summary.to(chunk.q.dtype), self.dims.kv_heads, dim=1)  # [B, H, T, D] each
        # A product with a constant column sums and scales in one operation of an exported step.
        column = torch.full((self.dims.head_dim, 1), self.dims.scale, dtype=keys.dtype, device=keys.device)
        scores = ((chunk.q * chunk.rows(keys)) @ column).float()  # [B, H, R, 1]
        if self.bias is not None:
            groups = self.dims.groups
            bias = self.bias[:, :, None].expand(-1, -1, 1 if groups == 1 else chunk.clock.time)
            scores = scores + bias.reshape(1, self.dims.kv_heads, -1, 1)
        elif self.bias_kind == "log_count":
            scores = scores + chunk.rows(self.count(chunk).log())
        rows = chunk.rows(values)
        return [Slots(scores, None, lambda share: share * rows)], new


class RingAverage(Summary):
    """A weighted average over the last ``W`` pairs, summed from the ring at every step.

    (A running sum would be cheaper, but it would drift: rounding errors stay in it.)
    """

    def __init__(self, dims: Dims, window: int, bias: Bias = "learned") -> None:
        super().__init__(dims, bias)
        self.window = at_least(self.type_name, "window", window, 1)

    def states(self) -> tuple[StateSpec, ...]:
        """A ring of pairs."""
        shape = (2 * self.dims.kv_heads, self.window, self.dims.head_dim)
        return (StateSpec("pairs", shape, self.dims.dtype, "append"),)

    @abstractmethod
    def weights(self, age: Tensor, live: Tensor) -> Tensor:
        """β for entries of the given ages; 0 where an entry is not live (its age is then meaningless).

        Args:
            age: ``[B or 1, 1, T, S]``.
            live: Of the same shape.

        Returns:
            Float32 ``[B or 1, 1 or 2H, T, S]``.
        """

    def summarise(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``(Σ β k / Σ β, Σ β v / Σ β)`` over the pairs seen so far."""
        clock = chunk.clock
        age = (clock.offsets[:, None] - clock.offsets)[None, None]  # [1, 1, T, T]
        betas = [self.weights(age, clock.chunk_live(self.window))]
        total = betas[0] @ chunk.pairs  # [B, 2H, T, D]
        if past is not None:
            age = clock.ring_age(self.window)[:, None, None, :] + (clock.offsets[:, None] + 1)  # [B, 1, T, W]
            betas.append(self.weights(age, clock.ring_live(self.window)))
            total = total + betas[1] @ past["pairs"].float()
        return total / self.mass(chunk, betas), {"pairs": chunk.pairs.to(chunk.v.dtype)}

    def mass(self, chunk: Chunk, betas: list[Tensor]) -> Tensor:
        """``Σ β`` over the pairs seen so far, broadcastable to ``[B, 2H, T, 1]``."""
        # A product with ones, not a sum: TensorRT-RTX 1.7 does not compile a sum over weights of several heads.
        first, *others = (beta @ beta.new_ones(beta.shape[-1], 1) for beta in betas)
        return sum(others, first)

    def count(self, chunk: Chunk) -> Tensor:
        """``min(i + 1, W)``."""
        return chunk.clock.counts().clamp(max=float(self.window))


class DecayingAverage(Summary):
    """A weighted average of all pairs, with a decay: ``S_i = a_i S_{i-1} + w_i (k_i, v_i)``, read as ``S_i / n_i``.

    ``n_i = a_i n_{i-1} + w_i`` is the mass, so the average is right from the first step on.
    """

    has_count = False

    def states(self) -> tuple[StateSpec, ...]:
        """The decayed sum of pairs, and its mass."""
        heads, width = self.dims.kv_heads, self.dims.head_dim
        return (StateSpec("sum", (2 * heads, 1, width)), StateSpec("mass", (heads, 1, 1)))

    @abstractmethod
    def decay(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """``log a_i`` and ``w_i``, both float32 ``[B or 1, H, T or 1, 1]``."""

    def summarise(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The average up to every query."""
        log_a, weight = self.decay(chunk)
        within, carried = decay_matrix(chunk.clock.causal_ones(), log_a)  # [B, H, T, T], [B, H, T, 1]
        within = within * weight.transpose(-1, -2)
        total = both(within) @ chunk.pairs  # [B, 2H, T, D]
        mass = within.sum(dim=-1, keepdim=True)  # [B, H, T, 1]
        if past is not None:
            total = total + both(carried) * past["sum"]
            mass = mass + carried * past["mass"]
        mass = mass.expand(chunk.pairs.shape[0], -1, -1, -1)
        return total / both(mass), {"sum": total[:, :, -1:], "mass": mass[:, :, -1:]}


def wide_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in float32, whatever the layer's dtype: rounding errors of a gate add up over all steps."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def both(per_head: Tensor) -> Tensor:
    """Repeat what is the same for keys and values: ``[B, H, ...]`` to ``[B, 2H, ...]``."""
    return torch.cat([per_head, per_head], dim=1)


def decay_matrix(causal_ones: Tensor, log_a: Tensor) -> tuple[Tensor, Tensor]:
    """How much of entry ``j`` is left at query ``t``, and how much of the past state.

    Args:
        causal_ones: Lower-triangular ones ``[T, T]``.
        log_a: Logarithm of the decay of every step, at most 0, ``[B or 1, H, T, 1]``.

    Returns:
        ``exp(Σ_{j<r≤t} log a_r)`` for ``j ≤ t`` and 0 elsewhere, ``[B, H, T, T]``; ``exp(Σ_{r≤t} log a_r)``,
        ``[B, H, T, 1]``.
    """
    elapsed = causal_ones @ log_a.expand(-1, -1, causal_ones.shape[0], -1)  # [B, H, T, 1]
    between = (elapsed - elapsed.transpose(-1, -2)).clamp(_FORGOTTEN, 0.0)
    return between.exp() * causal_ones, elapsed.clamp(min=_FORGOTTEN).exp()
