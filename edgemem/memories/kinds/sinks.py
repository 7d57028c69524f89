"""Exact attention over the first pairs of the stream.

Symbols: ``n`` sinks, ``s`` slot, ``W`` window, ``i`` position of the query.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, Dims, SlotMemory, Slots, States, at_least, shared_slots
from edgemem.memories.registry import register_memory


@register_memory
class Sinks(SlotMemory):
    """The first ``n`` pairs of the stream, once they have left the window.

    StreamingLLM (Xiao et al. 2023, section 3.2). Positions are by slot: sink ``s`` has position ``s``, and the query
    ``min(i, n + W - 1)``, so that distances never exceed those seen in training (without a window: ``min(i, n)``).
    While a sink is still in the window, it is seen only there: no pair counts twice.

    Args:
        dims: Sizes of the layer; ``dims.window`` is the window that the sinks precede.
        slots: ``n``.
    """

    type_name = "sinks"
    about = About(
        formula="the first `n` pairs, once they have left the window",
        use="for models that put attention on their first tokens, as ordinary decoders do. Such a model "
        "collapses when its first tokens leave the window (StreamingLLM). Sinks have positions by slot, so "
        "distances never exceed those of training.",
        nbytes="8*H*D*n",
        example=(
            {"type": "sinks", "slots": 3},
            {"type": "window", "window": 6},
        ),
        options={
            "slots": "`n`",
        },
    )

    def __init__(self, dims: Dims, slots: int = 4) -> None:
        super().__init__(dims)
        self.slots = at_least(self.type_name, "slots", slots, 1)

    @property
    def always_seen(self) -> bool:
        """Without a window, the first sink is visible from the start."""
        return self.dims.window == 0

    def states(self) -> tuple[StateSpec, ...]:
        """The first keys (rotated to their slots, which are their positions) and values."""
        shape = (self.dims.kv_heads, self.slots, self.dims.head_dim)
        return (StateSpec("k", shape, self.dims.dtype), StateSpec("v", shape, self.dims.dtype))

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]]:
        """Its name in the operator."""
        return self.type_name, ()

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """The sinks as slots; those in this chunk are stored first."""
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
