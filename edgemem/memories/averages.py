"""Summaries: one pair ``(k̄, v̄)`` that stands for many.

Symbols, after section 2 of the design::

    n_c = W   pairs that a moving average looks back on
    β_a       weight of the pair of age a (0 is the newest)
    γ         the geometric β: β_a = γ^a
    m, c      mean so far and the carry that float32 rounding left behind
    g_i       the gate of step i, in (0, 1)

A summary is one slot beside others. Alone it is degenerate: a softmax over one score is 1, so the output is ``v̄``
whatever the query is. Keys are averaged un-rotated (rotated ones would cancel), and the un-rotated query scores them.
All sums are float32 in any precision. Keys and values are averaged alike, so they lie on one axis of 2H heads.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.errors import ConfigError
from edgemem.memories.base import Chunk, Dims, SlotMemory, Slots, States, at_least, is_number, register_memory

Bias = Literal["none", "learned", "log_count"]

_FORGOTTEN = -80.0
"""Logarithm of a weight too small to matter; below it lie float32's denormals, which processors multiply slowly."""


class Summary(SlotMemory):
    """One slot whose pair differs from query to query.

    Args:
        dims: Sizes of the layer.
        bias: What is added to the slot's score: nothing, a number learned for each query head (the default, 0 at
            first), or the logarithm of how many pairs the slot stands for.
    """

    has_count: ClassVar[bool] = True

    def __init__(self, dims: Dims, bias: Bias = "learned") -> None:
        super().__init__(dims)
        known = [kind for kind in get_args(Bias) if kind != "log_count" or self.has_count]
        if bias not in known:
            raise ConfigError(f"memory {self.type_name!r}: bias {bias!r} is not one of {', '.join(known)}.")
        self.bias_kind = bias
        self.bias = nn.Parameter(torch.zeros(dims.kv_heads, dims.groups)) if bias == "learned" else None

    @property
    def always_seen(self) -> bool:
        """A summary holds the query's own pair at least."""
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

    (A running sum would be cheaper and would drift: what rounding adds it never takes away.)
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
        """β for entries of the given ages, 0 where not live (the age then says nothing).

        Args:
            age: ``[B or 1, 1, T, S]``.
            live: Of the same shape.

        Returns:
            Float32 ``[B or 1, 1 or 2H, T, S]``.
        """

    def summarise(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """``(Σ β k / Σ β, Σ β v / Σ β)`` over the pairs that are there."""
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
        """``Σ β`` over the pairs that are there, broadcastable to ``[B, 2H, T, 1]``."""
        # A product with ones, not a sum: TensorRT-RTX 1.7 does not compile a sum over weights of several heads.
        first, *others = (beta @ beta.new_ones(beta.shape[-1], 1) for beta in betas)
        return sum(others, first)

    def count(self, chunk: Chunk) -> Tensor:
        """``min(i + 1, W)``."""
        return chunk.clock.counts().clamp(max=float(self.window))


@register_memory
class MovingAverage(RingAverage):
    """``Mem_i = (Σ k_j / n, Σ v_j / n)`` over the last ``W`` pairs, ``n = min(i + 1, W)``."""

    type_name = "moving_average"

    def weights(self, age: Tensor, live: Tensor) -> Tensor:
        """1 for every live entry."""
        return live.float()

    def mass(self, chunk: Chunk, betas: list[Tensor]) -> Tensor:
        """``n``, known without a sum (which TensorRT-RTX 1.7 does not compile over a mask of ones)."""
        return self.count(chunk)


@register_memory
class WeightedMovingAverage(RingAverage):
    """``Mem_i = (Σ β_a k_{i-a} / Σ β_a, Σ β_a v_{i-a} / Σ β_a)``, ``a`` from 0 to ``min(i, W - 1)``.

    Args:
        dims: Sizes of the layer.
        window: ``W``.
        beta: ``W`` positive weights, the newest first; ``None`` learns one for each head and age (all 1 at first).
        bias: See :class:`Summary`.
    """

    type_name = "weighted_average"

    def __init__(self, dims: Dims, window: int, beta: Sequence[float] | None = None, bias: Bias = "learned") -> None:
        super().__init__(dims, window, bias)
        if beta is None:
            self.log_beta = nn.Parameter(torch.zeros(dims.kv_heads, window))
            return
        # Within float32's range, with room for the sum.
        if (
            not isinstance(beta, list | tuple)
            or len(beta) != window
            or not all(is_number(b) and 1e-30 <= b <= 1e30 for b in beta)
        ):
            raise ConfigError(
                f"memory {self.type_name!r}: beta must hold {window} numbers from 1e-30 to 1e30, the newest first, "
                f"got {beta!r}."
            )
        self.log_beta = nn.Parameter(torch.tensor(beta).log().expand(1, -1).clone(), requires_grad=False)

    def weights(self, age: Tensor, live: Tensor) -> Tensor:
        """``β[head, age]`` where live."""
        beta = self.log_beta.float().exp()[:, age[:, 0].clamp(0, self.window - 1)]  # [H or 1, B or 1, T, S]
        beta = torch.where(live, beta.transpose(0, 1), 0.0)
        return beta if beta.shape[1] == 1 else _both(beta)


@register_memory
class CumulativeAverage(Summary):
    """The mean of all pairs so far: ``Mem_i = ((k_i, v_i) + i · Mem_{i-1}) / (i + 1)``.

    Computed as ``m_i = m_{i-1} + ((k_i, v_i) - m_{i-1}) / (i + 1)``, which is bounded, plus Kahan's compensation
    (Kahan 1965): a step of ``1/i`` of the difference falls below float32's spacing after some 10^7 steps, where a
    plain mean would freeze; the carry keeps what was rounded off until it counts.
    """

    type_name = "cumulative"

    def states(self) -> tuple[StateSpec, ...]:
        """The mean pair and its carry; the counter is the position."""
        shape = (2 * self.dims.kv_heads, 1, self.dims.head_dim)
        return (StateSpec("mean", shape), StateSpec("carry", shape))

    def summarise(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean up to every query."""
        if past is None:
            mean = carry = torch.zeros_like(chunk.pairs[:, :, :1])
        else:
            mean, carry = past["mean"], past["carry"]  # [B, 2H, 1, D]
        step = chunk.clock.running_mean() @ torch.cat([mean, carry, chunk.pairs], dim=2)  # [B, 2H, T, D]
        means = mean + step
        new_mean = means[:, :, -1:]
        return means, {"mean": new_mean, "carry": step[:, :, -1:] - (new_mean - mean)}


class DecayingAverage(Summary):
    """A weighted average of all pairs whose past decays: ``S_i = a_i S_{i-1} + w_i (k_i, v_i)``, read as ``S_i / n_i``.

    ``n_i = a_i n_{i-1} + w_i`` is the mass: the average is over what is there, from the first step on.
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
        total = _both(within) @ chunk.pairs  # [B, 2H, T, D]
        mass = within.sum(dim=-1, keepdim=True)  # [B, H, T, 1]
        if past is not None:
            total = total + _both(carried) * past["sum"]
            mass = mass + carried * past["mass"]
        mass = mass.expand(chunk.pairs.shape[0], -1, -1, -1)
        return total / _both(mass), {"sum": total[:, :, -1:], "mass": mass[:, :, -1:]}


def wide_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """``layer(x)`` in float32, in whatever dtype the layer is kept: a gate's rounding adds up over all steps."""
    return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def _both(per_head: Tensor) -> Tensor:
    """The same for keys and for values: ``[B, H, ...]`` to ``[B, 2H, ...]``."""
    return torch.cat([per_head, per_head], dim=1)


def decay_matrix(causal_ones: Tensor, log_a: Tensor) -> tuple[Tensor, Tensor]:
    """How much of entry ``j`` is left at query ``t``, and how much of the past.

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


@register_memory
class GeometricAverage(DecayingAverage):
    """The weighted average whose weights fall geometrically, ``β_a = γ^a``: it needs one pair only.

    Args:
        dims: Sizes of the layer.
        decay: ``γ`` in (0, 1), one number or one for each key/value head; ``None`` learns one for each head.
        bias: ``"none"`` or ``"learned"``, see :class:`Summary`.
    """

    type_name = "geometric"

    def __init__(self, dims: Dims, decay: float | Sequence[float] | None = None, bias: Bias = "learned") -> None:
        super().__init__(dims, bias)
        heads = dims.kv_heads
        # Learned: time constants from 8 to 512 steps, one for each head, so that heads start on different scales.
        values: list[float] = [1 - 2.0 ** -(3 + 6 * h / max(heads - 1, 1)) for h in range(heads)]
        if decay is not None:
            values = list(decay) if isinstance(decay, Sequence) else [decay] * heads
        if len(values) != heads or not all(is_number(value) and 0.0 < value < 1.0 for value in values):
            raise ConfigError(
                f"memory {self.type_name!r}: decay must be in (0, 1), one number or {heads}, got {decay}."
            )
        logits = torch.tensor([math.log(value / (1 - value)) for value in values])
        self.decay_logit = nn.Parameter(logits, requires_grad=decay is None)

    def decay(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """``log γ`` and 1."""
        log_a = F.logsigmoid(self.decay_logit.float())[None, :, None, None]
        return log_a, torch.ones_like(log_a)


@register_memory
class GatedAverage(DecayingAverage):
    """The general recurrent update with a learned gate: ``S_i = g_i S_{i-1} + (1 - g_i) (k_i, v_i)``.

    ``g_i = sigmoid(x_i W_g + b_g)`` for each head: the input says how much to keep (minGRU's gate, Feng et al. 2024,
    eq. 4, one for a head).
    """

    type_name = "gated_average"

    def __init__(self, dims: Dims, bias: Bias = "learned") -> None:
        super().__init__(dims, bias)
        self.gate = nn.Linear(dims.model, dims.kv_heads)
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.constant_(self.gate.bias, 4.0)  # keep 98 % at first

    def decay(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """``log g_i`` and ``1 - g_i``."""
        logit = wide_linear(self.gate, chunk.x).transpose(1, 2).unsqueeze(-1)  # [B, H, T, 1]
        # 1 - g is computed as sigmoid(-logit), which does not cancel; the floor keeps the mass above 0.
        return F.logsigmoid(logit), torch.sigmoid(-logit).clamp(min=1e-12)
