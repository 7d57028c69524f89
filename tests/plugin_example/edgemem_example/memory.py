"""A memory that keeps one pair: the largest key and value so far, element by element, which fade over time."""

from __future__ import annotations

import torch
from torch import Tensor

from edgemem import StateSpec
from edgemem.memories import Dims, RecurrentMemory


class FadingPeak(RecurrentMemory):
    """``Mem_i = max((k_i, v_i), fade · Mem_{i-1})``, element by element.

    Args:
        dims: Sizes of the layer.
        fade: What is left of the peak after one step, 0 to 1.
    """

    type_name = "fading_peak"

    def __init__(self, dims: Dims, fade: float = 0.9) -> None:
        super().__init__(dims)
        self.fade = fade

    def states(self) -> tuple[StateSpec, ...]:
        return (StateSpec("pair", (2 * self.dims.kv_heads, self.dims.head_dim)),)

    def update(self, pair: Tensor, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        peak = torch.maximum(self.fade * state["pair"], pair)
        return peak, {"pair": peak}
