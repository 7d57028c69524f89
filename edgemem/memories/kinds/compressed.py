"""Compressed memory: pairs that leave the window become one, ``c`` at a time, in a first-in first-out queue.

Symbols::

    c    rate: pairs to a slot        m    slots a query sees
    W    window (0: none)             b    a block: the pairs at positions b·c .. (b+1)·c - 1
    i    position of the query        R    length of the stored queue: m slots, and those still inside the window

A block is pooled as it *arrives*, and is visible once its last pair has left the window: ``(b + 1) c - 1 ≤ i - W``.
So the window's pairs need not be stored unrotated; the queue only has to be longer.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.errors import ConfigError
from edgemem.memories.base import About, Chunk, Dims, SlotMemory, Slots, States, at_least, shared_slots
from edgemem.memories.clock import Clock
from edgemem.memories.registry import register_memory

Pooling = Literal["mean", "convolution"]


@register_memory
class Compressed(SlotMemory):
    """The last ``m`` complete blocks outside the window, each one slot: its mean pair or a convolution.

    Compressive Transformer (Rae et al. 2019, section 3.1: mean pooling, 1D convolution), with keys not rotated.

    Args:
        dims: Sizes of the layer; ``dims.window`` is ``W``.
        slots: ``m``.
        rate: ``c``, 2 or more.
        pooling: How a block becomes a pair. ``"convolution"``: ``Σ_r k_{bc+r} A_r``, a matrix ``A_r`` [D, D] for each
            place in the block, for the keys and the values of each head; all ``I / c`` at first, which is the mean.
    """

    type_name = "compressed"
    about = About(
        formula="the last `m` blocks of `c` pairs each, outside the window: their means, or a learned convolution",
        use="for a coarse view of the steps just before the window.",
        nbytes="8*H*D*(m + ceil(W / c) + 2)",
        example=(
            {"type": "window", "window": 6},
            {"type": "compressed", "slots": 2, "rate": 3},
        ),
        options={
            "slots": "`m`",
            "rate": "`c`, 2 or more",
            "pooling": 'how a block becomes one pair: `"mean"`, or `"convolution"`, `Σ_r k_{bc+r} A_r` and the same '
            "for `v`, with learned matrices `A_r` for each place `r` and each head, which start as the mean",
        },
    )

    def __init__(self, dims: Dims, slots: int = 16, rate: int = 4, pooling: Pooling = "mean") -> None:
        super().__init__(dims)
        if pooling not in get_args(Pooling):
            raise ConfigError(
                f"memory {self.type_name!r}: pooling {pooling!r} is not one of {', '.join(get_args(Pooling))}."
            )
        self.slots = at_least(self.type_name, "slots", slots, 1)
        self.rate = at_least(self.type_name, "rate", rate, 2)
        self.queue = self.slots + -(-dims.window // self.rate) + 1
        self.kernel = None  # [2H, c·D, D]
        if pooling == "convolution":
            self.kernel = nn.Parameter((torch.eye(dims.head_dim) / rate).repeat(2 * dims.kv_heads, rate, 1))

    def states(self) -> tuple[StateSpec, ...]:
        """The queue of pairs (block ``b`` in slot ``b mod R``) and the sum of the block that is filling."""
        heads, width = 2 * self.dims.kv_heads, self.dims.head_dim
        return (StateSpec("slots", (heads, self.queue, width)), StateSpec("partial", (heads, 1, width)))

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]] | None:
        """Its name in the operator, with ``m`` and ``c``; the operator has no convolution."""
        return None if self.kernel is not None else (f"{self.type_name}:{self.slots}:{self.rate}", ())

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """Slots of the queue and of the chunk's own blocks."""
        clock = chunk.clock
        plan = clock.once(("compressed", self.slots, self.rate, self.dims.window), lambda: _Plan(clock, self))
        if self.kernel is None:
            sums = plan.membership @ chunk.pairs  # [B, 2H, N, D]
        else:
            laid = plan.places @ chunk.pairs  # [B, 2H, N·c, D]
            sums = laid.reshape(*laid.shape[:2], -1, self.kernel.shape[1]) @ self.kernel
        if past is not None:
            sums = sums + plan.first * past["partial"]
        pooled = sums / self.rate if self.kernel is None else sums
        slots = [self._slots(chunk, pooled, plan.own_seen)]
        queue = plan.placed @ pooled  # [B, 2H, R, D]
        if past is not None:
            slots.insert(0, self._slots(chunk, past["slots"], plan.queue_seen))
            queue = torch.where(plan.overwritten, queue, past["slots"])
        return slots, {"slots": queue, "partial": plan.filling @ sums}

    def _slots(self, chunk: Chunk, pairs: Tensor, live: Tensor) -> Slots:
        keys, values = torch.split(pairs.to(chunk.q.dtype), self.dims.kv_heads, dim=1)
        return shared_slots(chunk.q_scaled, keys, values, live)


class _Plan:
    """Which block every pair of a call belongs to, where blocks are put, and who sees them.

    The call's own blocks are numbered ``n = 0 .. N-1`` from the block that holds position ``p``.

    Attributes:
        membership: 1 where offset ``t`` lies in block ``n``, float32 ``[B, 1, N, T]``.
        places: 1 where it lies at place ``r`` of block ``n``, float32 ``[B, 1, N·c, T]``.
        first: 1 for block 0, which the partial sum belongs to, float32 ``[1, 1, N, 1]``.
        own_seen: Which of the call's blocks a query sees, bool ``[B, 1, T, N]``.
        queue_seen: Which slots of the queue a query sees, bool ``[B, 1, T, R]``.
        placed: 1 where slot ``r`` takes block ``n``, float32 ``[B, 1, R, N]``.
        overwritten: Which slots the call writes, bool ``[B, 1, R, 1]``.
        filling: 1 for the block that is incomplete when the call ends, float32 ``[B, 1, 1, N]``.
    """

    def __init__(self, clock: Clock, memory: Compressed) -> None:
        rate, window, length = memory.rate, memory.dims.window, memory.queue
        device = clock.start.device

        def block(position: Tensor) -> Tensor:
            return position // rate  # stays int64 in ONNX; torch.div(rounding_mode=...) becomes a float32 division

        first = block(clock.start)[:, None]  # [B, 1]
        end = block(clock.start + clock.time)[:, None]  # the block that is filling when the call ends
        own = torch.arange(clock.time // rate + 2, device=device)  # [N]
        numbers = first + own  # [B, N]
        queue = torch.arange(length, device=device)
        kept = first - 1 - torch.remainder(first - 1 - queue, length)  # newest block in slot r when the call starts
        newest = end - 1 - torch.remainder(end - 1 - queue, length)  # and when it ends
        seen = block((clock.positions - (window - 1)).clamp(min=0))[..., None]  # [B, T, 1] complete, outside window

        def visible(number: Tensor) -> Tensor:
            blocks = number[:, None, :]  # [B, 1, ...]
            return ((blocks < seen) & (blocks >= seen - memory.slots) & (blocks >= 0))[:, None]

        self.membership = (block(clock.positions)[:, None, :] == numbers[..., None]).float()[:, None]
        places = (numbers[..., None] * rate + torch.arange(rate, device=device)).flatten(1)  # [B, N·c]
        self.places = (clock.positions[:, None, :] == places[..., None]).float()[:, None]
        self.first = (own == 0).float()[None, None, :, None]
        self.own_seen = visible(numbers)
        self.queue_seen = visible(kept)
        self.placed = (newest[..., None] == numbers[:, None, :]).float()[:, None]
        self.overwritten = (newest >= first)[:, None, :, None]
        self.filling = (numbers == end).float()[:, None, None, :]
