"""Exact pairs that surprised the delta rule.

Symbols::

    n      slots
    s_j    surprise of pair j: how much the delta rule writes for it, β_j ‖v_j - a_j S_{j-1}ᵀ k_j‖

The pairs kept after step ``i`` are the ``n`` with the largest ``s_j`` among all ``j ≤ i`` (of equal ones the earlier).
So a chunk needs no loop over time: pair ``j`` is kept at ``i`` where fewer than ``n`` pairs up to ``i`` precede it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, Dims, SlotMemory, Slots, States, at_least, shared_slots
from edgemem.memories.kinds.gated_delta import GatedDelta
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import both

_EMPTY = -1.0
"""The surprise of a slot that holds no pair yet: less than any pair's."""


@register_memory
class Exact(SlotMemory):
    """The ``n`` pairs of the stream that surprised the layer's ``gated_delta`` most, each one slot.

    After HOLA (arXiv 2607.02303). A new pair takes the slot of the least surprise when its own is greater. Keys and
    queries are not rotated, so that an old pair is found as well as a new one. Each head keeps its own pairs.

    Args:
        dims: Sizes of the layer.
        slots: ``n``.
    """

    type_name = "exact"
    beside = GatedDelta.type_name
    about = About(
        formula="the `n` pairs with the largest surprise, `β_j ‖v_j - a_j S_{j-1}ᵀ k_j‖` of a `gated_delta`",
        use="for facts that the matrix of the `gated_delta` in the same list predicts badly, and would blur. A pair "
        "stays until `n` others surprised more, however long ago that was.",
        nbytes="8*H*D*n + 4*H*n",
        example=(
            {"type": "gated_delta"},
            {"type": "exact", "slots": 3},
        ),
        options={
            "slots": "`n`",
        },
    )

    def __init__(self, dims: Dims, slots: int = 16) -> None:
        super().__init__(dims)
        self.slots = at_least(self.type_name, "slots", slots, 1)

    @property
    def always_seen(self) -> bool:
        """The first pair takes an empty slot."""
        return True

    def states(self) -> tuple[StateSpec, ...]:
        """The pairs, keys not rotated, and their surprise, the largest first."""
        heads, width = self.dims.kv_heads, self.dims.head_dim
        return (
            StateSpec("slots", (2 * heads, self.slots, width), self.dims.dtype),
            StateSpec("surprise", (heads, self.slots, 1), initial=_EMPTY),
        )

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]] | None:
        """Its name in the operator, and what the delta rule wrote ``[B, T, H D]``."""
        return None if written is None else (self.type_name, (written.transpose(1, 2).flatten(2),))

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """Slots of the state and of the chunk's own pairs."""
        assert chunk.written is not None  # `beside`
        new = chunk.written.detach().norm(dim=-1, keepdim=True)  # [B, H, T, 1]
        causal = chunk.clock.causal_ones()  # [T, T]
        pairs = chunk.pairs.to(chunk.v.dtype)
        if past is None:
            batch = pairs.shape[0]
            old = torch.full((batch, self.dims.kv_heads, self.slots, 1), _EMPTY, device=pairs.device)
            kept = torch.zeros_like(pairs[:, :, :1]).expand(-1, -1, self.slots, -1)
        else:
            old, kept = past["surprise"], past["slots"]
        before_new = causal @ _precede(new) + _count(old >= new.mT)  # [B, H, T, T]: pairs that pair j yields to at t
        before_old = _count(_precede(old)) + causal @ (new > old.mT).float()  # [B, H, T, n]
        own = (before_new < self.slots) & chunk.clock.chunk_live(None)
        slots = [self._slots(chunk, pairs, own)]
        if past is not None:
            slots.insert(0, self._slots(chunk, kept, (before_old < self.slots) & (old.mT >= 0)))
        # Sorted by surprise, so that the state does not depend on how the steps were cut into calls.
        number = torch.arange(self.slots, device=old.device).float()[:, None]
        from_old, from_new = (before_old[:, :, -1:] == number).float(), (before_new[:, :, -1:] == number).float()
        moved = both(from_old).to(pairs.dtype) @ kept + both(from_new).to(pairs.dtype) @ pairs  # [B, 2H, n, D]
        return slots, {"slots": moved, "surprise": from_old @ old + from_new @ new}

    def _slots(self, chunk: Chunk, pairs: Tensor, live: Tensor) -> Slots:
        keys, values = torch.split(pairs, self.dims.kv_heads, dim=1)
        return shared_slots(chunk.q_scaled, keys, values, live)


def _precede(surprise: Tensor) -> Tensor:
    """1 where pair ``i`` is kept rather than pair ``j``: ``[B, H, S, 1]`` to float32 ``[B, H, S(i), S(j)]``."""
    order = torch.arange(surprise.shape[2], device=surprise.device)
    earlier = order[:, None] < order
    return ((surprise > surprise.mT) | ((surprise == surprise.mT) & earlier)).float()


def _count(wins: Tensor) -> Tensor:
    """Sum over the third axis, ``[B, H, S, T]`` to float32 ``[B, H, 1, T]``, as a product: see ``RingAverage.mass``."""
    return torch.ones(1, wins.shape[2], device=wins.device) @ wins.float()
