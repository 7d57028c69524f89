"""Exact attention over the newest entries, over the first ones, and (the baseline) over all.

Symbols: ``W`` window, ``n`` sinks, ``i`` position of the query, ``s`` slot. See :mod:`edgemem.memories.base`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories.base import Chunk, Dims, SlotMemory, Slots, States, at_least, register_memory, shared_slots


@register_memory
class Window(SlotMemory):
    """Attention over the last ``W`` pairs: ``Mem_i = (K[i-W+1 .. i], V[i-W+1 .. i])``.

    Sliding-window attention (Longformer, Beltagy et al. 2020, section 3.1; Mistral 7B, 2023). Keys are stored
    rotated to their absolute positions. The ring and the chunk are two score blocks: the ring is never copied.

    Args:
        dims: Sizes of the layer.
        window: ``W``, the query itself included.
    """

    type_name = "window"

    def __init__(self, dims: Dims, window: int) -> None:
        super().__init__(dims)
        self.window = at_least(self.type_name, "window", window, 1)

    @property
    def always_seen(self) -> bool:
        """A query sees itself."""
        return True

    def states(self) -> tuple[StateSpec, ...]:
        """Rings of rotated keys and of values."""
        shape = (self.dims.kv_heads, self.window, self.dims.head_dim)
        return (StateSpec("k", shape, self.dims.dtype, "append"), StateSpec("v", shape, self.dims.dtype, "append"))

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """Slots of the ring and of the chunk; the chunk's pairs are the new entries."""
        live = chunk.clock.chunk_live(self.window)
        slots = [shared_slots(chunk.q_rotated, chunk.k_rotated, chunk.v, live)]
        if past is not None:
            live = chunk.clock.ring_live(self.window)
            slots.insert(0, shared_slots(chunk.q_rotated, past["k"], past["v"], live))
        return slots, {"k": chunk.k_rotated, "v": chunk.v}


@register_memory
class Sinks(SlotMemory):
    """The first ``n`` pairs of the stream, once they have left the window.

    StreamingLLM (Xiao et al. 2023, section 3.2). Positions are by slot: sink ``s`` stands at position ``s``, and the
    query at ``min(i, n + W - 1)``, so that distances never exceed those seen in training (without a window, at
    ``min(i, n)``). While a sink is still in the window it is seen there alone: no pair counts twice.

    Args:
        dims: Sizes of the layer; ``dims.window`` is the window that the sinks precede.
        slots: ``n``.
    """

    type_name = "sinks"

    def __init__(self, dims: Dims, slots: int = 4) -> None:
        super().__init__(dims)
        self.slots = at_least(self.type_name, "slots", slots, 1)

    @property
    def always_seen(self) -> bool:
        """Without a window the first sink is there from the start."""
        return self.dims.window == 0

    def states(self) -> tuple[StateSpec, ...]:
        """The first keys (rotated to their slots, which are their positions) and values."""
        shape = (self.dims.kv_heads, self.slots, self.dims.head_dim)
        return (StateSpec("k", shape, self.dims.dtype), StateSpec("v", shape, self.dims.dtype))

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """The sinks as slots; those that lie in this chunk are taken in first."""
        clock, window = chunk.clock, self.dims.window

        def arrivals() -> tuple[Tensor, Tensor]:
            slot = torch.arange(self.slots, device=clock.start.device)
            here = slot[:, None] == clock.positions[:, None, :]  # [B, n, T]
            return here[:, None], here.any(dim=-1)[:, None, :, None]

        def seen() -> tuple[Tensor, Tensor]:
            slot = torch.arange(self.slots, device=clock.start.device)
            live = clock.positions[..., None] - slot >= window  # [B, T, n]
            return live[:, None], clock.positions.clamp(max=self.slots + max(window, 1) - 1)

        here, arrived = clock.once(("sink_arrivals", self.slots), arrivals)
        live, positions = clock.once(("sinks_seen", self.slots, window), seen)
        new: dict[str, Tensor] = {}
        for name, entries in (("k", chunk.k_rotated), ("v", chunk.v)):
            placed = here.to(entries.dtype) @ entries  # [B, H, n, D]: at most one entry a slot, hence exact
            new[name] = placed if past is None else torch.where(arrived, placed, past[name])
        q = chunk.rotated_to(positions, ("sinks", self.slots, window))
        return [shared_slots(q, new["k"], new["v"], live)], new


@register_memory
class FullCache(SlotMemory):
    """The whole past: a KV cache that grows with every step. **Not a fixed-size memory**: it is the baseline that
    the others are compared with, and a model that uses it cannot stream for ever.
    """

    type_name = "full"

    @property
    def always_seen(self) -> bool:
        """A query sees itself."""
        return True

    def states(self) -> tuple[StateSpec, ...]:
        """All rotated keys and all values; the second axis grows."""
        shape = (self.dims.kv_heads, None, self.dims.head_dim)
        return (StateSpec("k", shape, self.dims.dtype), StateSpec("v", shape, self.dims.dtype))

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """Slots of the past and of the chunk; the new state is both, end to end."""
        live = chunk.clock.chunk_live(None)
        keys, values = chunk.k_rotated, chunk.v
        if past is not None:
            keys = torch.cat([past["k"], keys], dim=2)  # [B, H, P+T, D]
            values = torch.cat([past["v"], values], dim=2)
            before = torch.ones_like(past["k"][:1, :1, :, 0], dtype=torch.bool)[:, :, None, :]  # [1, 1, 1, P]
            live = torch.cat([before.expand(1, 1, chunk.clock.time, before.shape[-1]), live], dim=-1)
        return [shared_slots(chunk.q_rotated, keys, values, live)], {"k": keys, "v": values}
