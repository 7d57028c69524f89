"""One attention layer of a transformers model, with the memories of :mod:`edgemem.memories` in place of its cache.

The ring and the chunk are two score blocks under one softmax, the ring is never copied, and the new keys and values are
the entries to append.

Symbols: see :mod:`edgemem.memories.base`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.export.hf.attention_calls import AttentionCall
from edgemem.export.hf.bound import Bound, LengthBound, MemoryBound
from edgemem.export.hf.rotary import Rotation
from edgemem.memories.attention import slot_mask
from edgemem.memories.base import Chunk, Dims, SlotMemory, Slots, own_states
from edgemem.memories.clock import Clock, phase_angles, phase_steps
from edgemem.memories.kinds.cumulative import CumulativeAverage
from edgemem.memories.kinds.sinks import Sinks
from edgemem.memories.kinds.window import Window
from edgemem.memories.site import LayerSite, SiteAttributes, begin, end, layer_site, marks_layers
from edgemem.protocol import TORCH_DTYPES

_DTYPE_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


@dataclass(frozen=True)
class _HeadDims(Dims):
    """Sizes of a layer that scales its scores in its own way."""

    scaling: float = 1.0

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return self.scaling


@dataclass
class _TurnedChunk(Chunk):
    """A chunk whose queries and keys are already rotated to their positions.

    Attributes:
        rotation: How the layer rotates.
        by_slot: Whether queries are rotated further, to the positions of slots; if not, they keep their own.
    """

    rotation: Rotation = Rotation()  # noqa: RUF009 (it cannot be changed)
    by_slot: bool = False

    def rotated_to(self, positions: Tensor, key: object) -> Tensor:
        """The scaled queries rotated from their own positions to ``positions`` [B, T]: ``[B, H, R, D]``."""
        if not self.by_slot:
            return self.q_rotated
        return self.turned(self.q_rotated, positions - self.clock.positions, key, queries=True)

    def turned(self, x: Tensor, distance: Tensor, key: object, *, queries: bool) -> Tensor:
        """Queries ``[B, H, R, D]`` or keys ``[B, H, T, D]``, rotated by ``distance`` [B, T]."""
        turns = self.rotation.turns
        if not turns:
            return x
        angle = self.clock.once(("turn", key, turns), lambda: phase_angles(distance, turns)[:, None])  # [B, 1, T, F]
        return self.rotation.turn(x, self.rows(angle) if queries else angle)


class AttentionLayer:
    """One attention layer and its memories.

    Args:
        prefix: First part of its states' names.
        call: One call of its attention function.
        bound: What bounds it if it has no window.
        rotation: How it rotates queries and keys; ``None`` if its memories do not need it.
    """

    def __init__(self, prefix: str, call: AttentionCall, bound: Bound | None, rotation: Rotation | None) -> None:
        self.prefix = prefix
        self.name = call.name
        self.module = call.module
        self.memory = bound if call.window is None and isinstance(bound, MemoryBound) else None
        window = _window(call.window, bound)
        self.rotation = rotation
        self.value_dim = call.v.shape[-1]
        heads, head_dim = call.q.shape[1], call.q.shape[-1]
        dtype: Any = _DTYPE_NAMES[call.k.dtype]
        dims = _HeadDims(0, heads, call.k.shape[1], head_dim, window, dtype=dtype, scaling=call.scaling)
        self.dims = dims
        self.memories: dict[str, SlotMemory] = {"window": Window(dims, window)}
        if self.memory is not None and self.memory.sinks:
            self.memories["sinks"] = Sinks(dims, self.memory.sinks)
        if self.memory is not None and self.memory.summary is not None:
            self.memories["summary"] = CumulativeAverage(dims, bias="none")

    def states(self) -> tuple[StateSpec, ...]:
        """``<layer>.window.k``, ``<layer>.window.v``, and the states of the layer's other memories."""
        return tuple(
            replace(
                spec,
                name=f"{self.prefix}.{name}.{spec.name}",
                shape=(*spec.shape[:-1], self.value_dim) if spec.name == "v" else spec.shape,
            )
            for name, memory in self.memories.items()
            for spec in memory.states()
        )

    def attend(
        self,
        clock: Clock,
        past: Mapping[str, Tensor] | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        softcap: float | None,
        sink_logits: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Read the memories.

        Args:
            clock: The time of the call.
            past: The layer's states under their full names; ``None`` at position 0.
            q: Queries ``[B, Hq, T, D]``, rotated to their positions.
            k: Keys ``[B, H, T, D]``.
            v: Values ``[B, H, T, Dv]``.
            softcap: ``c`` of ``c · tanh(score / c)`` (Gemma 2); ``None`` for plain scores.
            sink_logits: A score ``[Hq]`` for each head that joins the softmax without a value (gpt-oss).

        Returns:
            ``[B, Hq, T, Dv]``, and the new states.
        """
        site = self._site(past)
        if site is not None and past is not None:
            rotation = [self._phases(q), None, sink_logits]
            q = begin([q, k, v, clock.start, *rotation, site.bias, *site.given(past)], self._attributes(site, softcap))
        chunk = self._chunk(clock, q, k, v)
        slots: list[Slots] = []
        new: dict[str, Tensor] = {}
        for name, memory in self.memories.items():
            prefix = f"{self.prefix}.{name}"
            offered, states = memory(chunk, own_states(prefix, memory, past))
            slots.extend(offered)
            new.update({f"{prefix}.{key}": value for key, value in states.items()})
        read = self._read(chunk, slots, softcap, sink_logits)
        if site is not None:
            merged = read.transpose(1, 2).flatten(2)  # [B, T, Hq·Dv]: how the operator gives it
            merged = end([merged, *(new[name] for name in site.states)])
            read = merged.reshape(*merged.shape[:2], self.dims.heads, self.value_dim).transpose(1, 2)
        return read, new

    def _site(self, past: Mapping[str, Tensor] | None) -> LayerSite | None:
        """How an operator computes this layer; ``None``: it cannot, or no graph is traced."""
        if past is None or not marks_layers(self.dims):
            return None
        return layer_site(self.memories, f"{self.prefix}.")

    @property
    def _by_slot(self) -> bool:
        return self.memory is not None and self.memory.positions == "slot"

    def _phases(self, q: Tensor) -> Tensor | None:
        """With which the operator turns queries and keys that come rotated; ``None``: no memory needs it."""
        needed = "summary" in self.memories or ("sinks" in self.memories and self._by_slot)
        turns = self.rotation.turns if needed and self.rotation is not None else ()
        return torch.tensor(phase_steps(turns), device=q.device) if turns else None

    def _attributes(self, site: LayerSite, softcap: float | None) -> SiteAttributes:
        dims, rotation = self.dims, self.rotation or Rotation()
        sizes = (dims.heads, dims.kv_heads, dims.scale, softcap or 0.0, 0, 1, dims.window)
        return SiteAttributes(site.kinds, *sizes, rotation.start, int(rotation.pairs), int(self._by_slot))

    def _chunk(self, clock: Clock, q: Tensor, k: Tensor, v: Tensor) -> _TurnedChunk:
        dims = self.dims
        rows = q.reshape(q.shape[0], dims.kv_heads, dims.groups * clock.time, dims.head_dim)
        rotation = self.rotation or Rotation()
        # Only summaries read queries that are not rotated, and pairs.
        chunk = _TurnedChunk(clock, q, rows, rows * dims.scale, k, v, v, dims, rotation, self._by_slot)
        if "summary" in self.memories:
            chunk.q = chunk.turned(rows, -clock.positions, "back", queries=True)
            keys = chunk.turned(k, -clock.positions, "back", queries=False)
            chunk.pairs = torch.cat([keys, v], dim=1).float()
        return chunk

    def _read(self, chunk: Chunk, slots: list[Slots], softcap: float | None, sink_logits: Tensor | None) -> Tensor:
        """One softmax over all slots, in float32: ``[B, Hq, T, Dv]``."""
        dims, time = self.dims, chunk.clock.time
        scores = torch.cat([part.scores.float() for part in slots], dim=-1)  # [B, H, R, S]
        if softcap is not None:
            scores = (scores / softcap).tanh() * softcap
        scores = scores + slot_mask(chunk, slots)
        sizes = [part.scores.shape[-1] for part in slots]
        if sink_logits is not None:
            silent = sink_logits.float().reshape(1, dims.kv_heads, dims.groups, 1).expand(-1, -1, -1, time)
            silent = silent.reshape(1, dims.kv_heads, dims.groups * time, 1).expand(scores.shape[0], -1, -1, -1)
            scores = torch.cat([scores, silent], dim=-1)
            sizes.append(1)
        shares = torch.split(scores.softmax(dim=-1).to(chunk.q.dtype), sizes, dim=-1)
        read = slots[0].read(shares[0])
        for part, share in zip(slots[1:], shares[1:], strict=False):
            read = read + part.read(share)
        return read.reshape(read.shape[0], dims.heads, time, self.value_dim)


def _window(own: int | None, bound: Bound | None) -> int:
    """The number of newest pairs that a layer with such a window of its own keeps."""
    windows = [own] if own is not None else []
    if bound is not None and (own is None or isinstance(bound, LengthBound)):
        windows.append(bound.window)
    return min(windows)
