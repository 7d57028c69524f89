"""A mean of all pairs with a learned gate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.memories.base import About, Chunk, Dims
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import BIAS, Bias, DecayingAverage, wide_linear


@register_memory
class GatedAverage(DecayingAverage):
    """The general recurrent update with a learned gate: ``S_i = g_i S_{i-1} + (1 - g_i) (k_i, v_i)``.

    ``g_i = sigmoid(x_i W_g + b_g)`` for each head: the input decides how much to keep (minGRU's gate, Feng et al.
    2024, eq. 4, one for each head).
    """

    type_name = "gated_average"
    about = About(
        formula="`S_i = g_i S_{i-1} + (1 - g_i)(k_i, v_i)`, `g_i = sigmoid(x_i W_g + b_g)`, read as `S_i / n_i`",
        use="for what drifts, where the input decides when to forget.",
        nbytes="4*H*(2*D + 1)",
        example=(
            {"type": "window", "window": 6},
            {"type": "gated_average"},
        ),
        options={
            "bias": BIAS,
        },
    )

    def __init__(self, dims: Dims, bias: Bias = "learned") -> None:
        super().__init__(dims, bias)
        self.gate = nn.Linear(dims.model, dims.kv_heads)
        nn.init.normal_(self.gate.weight, std=0.02)
        nn.init.constant_(self.gate.bias, 4.0)  # keep 98 % at first

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]] | None:
        """Its name in the operator, and the gate before its sigmoid ``[B, T, H]``."""
        return None if x is None else (self.type_name, (wide_linear(self.gate, x),))

    def decay(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """``log g_i`` and ``1 - g_i``."""
        logit = wide_linear(self.gate, chunk.x).transpose(1, 2).unsqueeze(-1)  # [B, H, T, 1]
        # 1 - g is computed as sigmoid(-logit), which does not cancel; the floor keeps the mass above 0.
        return F.logsigmoid(logit), torch.sigmoid(-logit).clamp(min=1e-12)
