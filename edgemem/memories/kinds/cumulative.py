"""The mean of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, States
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import BIAS_COUNTED, Summary


@register_memory
class CumulativeAverage(Summary):
    """The mean of all pairs so far: ``Mem_i = ((k_i, v_i) + i · Mem_{i-1}) / (i + 1)``.

    Computed as ``m_i = m_{i-1} + ((k_i, v_i) - m_{i-1}) / (i + 1)``, which is bounded, plus Kahan's compensation
    (Kahan 1965): after some 10^7 steps, ``1/i`` of the difference is smaller than float32's spacing, and a plain mean
    would freeze. The carry collects what was rounded off until it is large enough to count.
    """

    type_name = "cumulative"
    about = About(
        formula="the mean of all pairs: `m_i = m_{i-1} + ((k_i, v_i) - m_{i-1}) / (i + 1)`",
        use="for what is constant over the whole stream: a recording's scale or offset, a speaker, a baseline.",
        nbytes="16*H*D",
        example=(
            {"type": "window", "window": 6},
            {"type": "cumulative", "bias": "log_count"},
        ),
        options={
            "bias": BIAS_COUNTED,
        },
    )

    def states(self) -> tuple[StateSpec, ...]:
        """The mean pair and its carry; the counter is the position."""
        shape = (2 * self.dims.kv_heads, 1, self.dims.head_dim)
        return (StateSpec("mean", shape), StateSpec("carry", shape))

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]]:
        """Its name in the operator."""
        return self.native_name, ()

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
