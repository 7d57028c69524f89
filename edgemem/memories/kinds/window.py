"""Exact attention over the newest pairs.

Symbols: ``W`` window, ``i`` position of the query. See :mod:`edgemem.memories.base`.
"""

from __future__ import annotations

from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, Dims, SlotMemory, Slots, States, at_least, shared_slots
from edgemem.memories.registry import register_memory


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
    about = About(
        formula="the last `W` pairs: `K[i-W+1 .. i], V[i-W+1 .. i]`",
        use="for everything that depends on recent steps. Try it first, and compare everything with it.",
        nbytes="8*H*D*W",
        example=({"type": "window", "window": 6},),
        options={
            "window": "`W`, the query's own pair included",
        },
    )

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

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]]:
        """Its name in the operator."""
        return self.type_name, ()

    def forward(self, chunk: Chunk, past: States | None) -> tuple[list[Slots], dict[str, Tensor]]:
        """Slots of the ring and of the chunk; the chunk's pairs are the new entries."""
        live = chunk.clock.chunk_live(self.window)
        slots = [shared_slots(chunk.q_rotated, chunk.k_rotated, chunk.v, live)]
        if past is not None:
            live = chunk.clock.ring_live(self.window)
            slots.insert(0, shared_slots(chunk.q_rotated, past["k"], past["v"], live))
        return slots, {"k": chunk.k_rotated, "v": chunk.v}
