"""The baseline: a KV cache that grows."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, SlotMemory, Slots, States, shared_slots
from edgemem.memories.registry import register_memory


@register_memory
class FullCache(SlotMemory):
    """The whole past: a KV cache that grows with every step.

    **Not a fixed-size memory**: it is the baseline for the others. A model that uses it cannot stream for ever.
    """

    type_name = "full"
    about = About(
        formula="every pair: the growing KV cache",
        use="the growing KV cache. It is the baseline, and `edgemem bench` builds it for you.",
        nbytes="8*H*D*i",
        example=({"type": "full"},),
    )

    @property
    def always_seen(self) -> bool:
        """A query sees itself."""
        return True

    def states(self) -> tuple[StateSpec, ...]:
        """All rotated keys and all values; the second axis grows."""
        shape = (self.dims.kv_heads, None, self.dims.head_dim)
        return (StateSpec("k", shape, self.dims.dtype), StateSpec("v", shape, self.dims.dtype))

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """Slots of the past and of the chunk; the new state is their concatenation."""
        live = chunk.clock.chunk_live(None)
        keys, values = chunk.k_rotated, chunk.v
        if past is not None:
            keys = torch.cat([past["k"], keys], dim=2)  # [B, H, P+T, D]
            values = torch.cat([past["v"], values], dim=2)
            before = torch.ones_like(past["k"][:1, :1, :, 0], dtype=torch.bool)[:, :, None, :]  # [1, 1, 1, P]
            live = torch.cat([before.expand(1, 1, chunk.clock.time, before.shape[-1]), live], dim=-1)
        return [shared_slots(chunk.q_rotated, keys, values, live)], {"k": keys, "v": values}
