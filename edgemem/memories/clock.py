"""Time within one call: the position of every query, and everything that layers derive from positions alone.

Symbols::

    p      start: position of the first query of the call, int64 [B], one for each stream
    t, j   offset of a query, of a key, in the call: 0 .. T-1
    i      p + t: position of a query
    W      ring length; slot s of a ring holds the newest position congruent to s modulo W
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")

PHASE_STEPS = 1 << 31
"""Steps of a full turn in an integer phase. Two factors below it have a product inside int64."""


class Clock:
    """Positions of one call, shared by all layers. Masks and phases are computed once a call.

    Args:
        start: Position of the first query, int64 ``[B]``.
        time: Number of queries ``T``.
    """

    def __init__(self, start: Tensor, time: int) -> None:
        self.start = start
        self.time = time
        self.offsets = torch.arange(time, device=start.device)
        self.positions = start[:, None] + self.offsets  # [B, T]
        self._made: dict[Hashable, object] = {}

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The result of ``make``, which runs only at the first call with this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[return-value]

    def ring_age(self, window: int) -> Tensor:
        """Age of every ring slot when the call starts: 0 for the newest entry, ``[B, W]``, in ``0 .. W-1``."""

        def make() -> Tensor:
            slots = torch.arange(window, device=self.start.device)
            return torch.remainder(self.start[:, None] + (window - 1) - slots, window)

        return self.once(("ring_age", window), make)

    def ring_live(self, window: int) -> Tensor:
        """Which ring slots hold an entry that query ``t`` may still see, ``[B, 1, T, W]``.

        An entry of age ``a`` at the start has age ``a + t + 1`` at query ``t``: the query itself takes age 0.
        """

        def make() -> Tensor:
            age = self.ring_age(window)[:, None, :]  # [B, 1, W]
            written = age < self.start[:, None, None]
            return (written & (age + (self.offsets[:, None] + 1) < window))[:, None]

        return self.once(("ring_live", window), make)

    def chunk_live(self, window: int | None) -> Tensor:
        """Which keys of the call query ``t`` may see: itself and those before it, in the window, ``[1, 1, T, T]``."""

        def make() -> Tensor:
            age = self.offsets[:, None] - self.offsets  # [T, T]
            live = age >= 0
            return (live if window is None else live & (age < window))[None, None]

        return self.once(("chunk_live", window), make)

    def causal_ones(self) -> Tensor:
        """Lower-triangular ones, float32 ``[T, T]``: a prefix sum as a matrix product."""
        return self.once("causal_ones", lambda: (self.offsets[:, None] >= self.offsets).float())

    def counts(self) -> Tensor:
        """How many pairs query ``t`` has seen, including its own: ``i + 1``, float32 ``[B, 1, T, 1]``."""
        return self.once("counts", lambda: (self.positions + 1).float()[:, None, :, None])

    def running_mean(self) -> Tensor:
        """The matrix from ``[mean, carry, x_0 .. x_{T-1}]`` to the step from the old mean to the mean at query ``t``.

        It computes ``carry + Σ_{j≤t} (x_j - mean - carry) / (i + 1)``; float32 ``[B, 1, T, 2 + T]``.
        """

        def make() -> Tensor:
            share = self.counts().reciprocal()  # [B, 1, T, 1]
            seen = (self.offsets + 1).float()[:, None] * share
            return torch.cat([-seen, 1 - seen, self.causal_ones() * share], dim=-1)

        return self.once("running_mean", make)

    def rotary(self, positions: Tensor, key: Hashable, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
        """Cosine and signed sine of the rotary angles at ``positions`` [B, T] or [T]: float32 ``[..., 1, T, D]``.

        RoFormer (Su et al. 2021, eq. 34), frequencies ``theta^(-2f/D)``.
        """

        def make() -> tuple[Tensor, Tensor]:
            turns = rotary_turns(head_dim, theta)
            spare = -len(turns) % VECTOR
            angle = phase_angles(positions, turns + [0.0] * spare)  # [..., T, D/2 + spare]
            cos, sin = angle.cos(), angle.sin()
            if spare:
                cos, sin = cos[..., :-spare], sin[..., :-spare]
            head_axis = positions.dim() - 1
            return (
                torch.cat([cos, cos], dim=-1).unsqueeze(head_axis),
                torch.cat([-sin, sin], dim=-1).unsqueeze(head_axis),
            )

        return self.once(("rotary", key, head_dim, theta), make)


VECTOR = 16
"""Floats that the widest vector register holds. Engines compute what does not fill one by another formula, whose last
bit may differ: then a row of a batch would not be bit-equal to the stream alone."""


def rotary_turns(head_dim: int, theta: float) -> list[float]:
    """Turns that each of the ``D/2`` frequencies ``theta^(-2f/D)`` makes from one position to the next."""
    return [theta ** (-2 * f / head_dim) / (2 * math.pi) for f in range(head_dim // 2)]


def phase_steps(turns: Sequence[float]) -> list[int]:
    """The same in whole steps of a phase."""
    return [round(turn * PHASE_STEPS) for turn in turns]


def phase_angles(positions: Tensor, turns: Sequence[float]) -> Tensor:
    """``2π · positions · turns``, exact at every position: int64 ``[...]`` to float32 ``[..., F]`` in ``-π .. π``.

    The angle is an exact integer phase, ``(position · step_f) mod 2^31`` of a turn, so that position 10^12 is as exact
    as position 1. Both factors are below 2^31, so the product fits in int64.

    Args:
        positions: Positions, or distances (which may be negative).
        turns: Turns that each of the ``F`` frequencies makes from one position to the next, between -1 and 1.
    """
    steps = torch.tensor(phase_steps(turns), device=positions.device)
    wrapped = torch.remainder(positions, PHASE_STEPS)[..., None]
    phase = torch.remainder(wrapped * steps + PHASE_STEPS // 2, PHASE_STEPS) - PHASE_STEPS // 2
    return phase.float() * (2 * math.pi / PHASE_STEPS)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs ``(x[f], x[f + D/2])`` of ``x`` [B, H, T, D] by angles with these cosines and signed sines.

    Computed in float32, and returned in the dtype of ``x``.
    """
    wide = x.float()
    low, high = torch.chunk(wide, 2, dim=-1)
    return (wide * cos + torch.cat([high, low], dim=-1) * sin).to(x.dtype)
