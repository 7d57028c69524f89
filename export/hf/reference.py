"""The bounded memory in a second, independent form: a mask over the whole sequence, for the model's own attention.

The check compares streams with this. It shares only the facts about a layer with
:mod:`edgemem.export.hf.attention_layer`: the attention is the model's own eager function with its scaling, caps and
sink logits, the rotary angles are computed by the formula in float64, the window is a mask. What a mask cannot express
becomes further keys: a sink that is read from another position is a separate key. Its scores come from queries rotated
to that position, which lie beside the plain queries on a wider last axis.

Symbols: ``i`` query, ``j`` key, ``n`` sinks, ``W`` window, ``D`` width of a head.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.errors import ExportError
from edgemem.export.hf.bound import MemoryBound
from edgemem.export.hf.rotary import Rotation


def dense_attention(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    memory: MemoryBound | None,
    rotation: Rotation | None,
    **options: Any,
) -> tuple[Tensor, Any]:
    """Attention of a whole sequence from position 0.

    Args:
        module: The layer.
        q: Queries ``[B, Hq, T, D]``, rotated to their positions.
        k: Keys ``[B, H, T, D]``.
        v: Values ``[B, H, T, Dv]``.
        mask: The model's own mask, added to scores ``[B or 1, 1, T, T]``.
        memory: What bounds the layer; ``None`` leaves the model's own window.
        rotation: How the layer rotates queries; needed for sinks by slot and summaries.
        options: The other arguments of the layer's attention.
    """
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        raise ExportError(f"{type(module).__name__} has no eager attention, which the check compares with.")
    time = q.shape[2]
    index = torch.arange(time, device=q.device)
    age = index[:, None] - index  # [T, T]
    if mask is None:
        mask = _additive(age >= 0, q.dtype)[None, None]
    mask = mask[..., :time]
    if memory is not None:
        in_window = age < memory.window
        if memory.sinks and memory.positions == "absolute":
            in_window = in_window | (index < memory.sinks)
        mask = mask.masked_fill(~in_window, torch.finfo(mask.dtype).min)
        extra = _Extra(q, k, v, mask)
        if memory.sinks and memory.positions == "slot":
            assert rotation is not None
            n = min(memory.sinks, time)
            stand = index.clamp(max=memory.sinks + memory.window - 1)
            extra.add(_turned(rotation, q, stand - index), k[:, :, :n], v[:, :, :n], age[:, :n] >= memory.window)
        if memory.summary == "cumulative":
            assert rotation is not None
            count = (index + 1)[:, None]
            means = [x.double().cumsum(dim=2) / count for x in (_turned(rotation, k, -index), v)]
            diagonal = age == 0  # every query has its own summary
            extra.add(_turned(rotation, q, -index), means[0].to(k.dtype), means[1].to(v.dtype), diagonal)
        q, k, v, mask = extra.q, extra.k, extra.v, extra.mask
    result: tuple[Tensor, Any] = eager(module, q, k, v, mask, **options)
    return result


class _Extra:
    """Keys of a sequence, and further keys with other queries, which follow on the last axis of the plain ones."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> None:
        self.q, self.k, self.v, self.mask = q, k, v, mask

    def add(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> None:
        """Append keys ``[B, H, S, D]`` that ``q`` [B, Hq, T, D] scores, seen where ``seen`` [T, S]."""
        old, new = torch.zeros_like(self.k[:, :, :1]), torch.zeros_like(k[:, :, :1])
        self.k = torch.cat(
            [
                torch.cat([self.k, new.expand(-1, -1, self.k.shape[2], -1)], dim=-1),
                torch.cat([old.expand(-1, -1, k.shape[2], -1), k], dim=-1),
            ],
            dim=2,
        )
        self.q = torch.cat([self.q, q], dim=-1)
        self.v = torch.cat([self.v, v], dim=2)
        mask = _additive(seen, self.mask.dtype).expand(*self.mask.shape[:2], -1, -1)
        self.mask = torch.cat([self.mask, mask], dim=-1)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, the least finite number elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def _turned(rotation: Rotation, x: Tensor, distance: Tensor) -> Tensor:
    """``x`` [B, H, T, D] rotated by ``distance`` [T] positions, with angles in float64."""
    angle = distance[:, None].double() * torch.tensor(rotation.frequencies, dtype=torch.float64, device=x.device)
    return rotation.turn(x.double(), angle).to(x.dtype)
