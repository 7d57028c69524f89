"""Linear attention: a sum of outer products.

Symbols: ``M`` matrix memory [D, D], rows for keys and columns for values; ``φ`` feature map, elu(x) + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, MatrixMemory, Operator, States
from edgemem.memories.clock import Clock
from edgemem.memories.registry import register_memory


@register_memory
class LinearAttention(MatrixMemory):
    """``M_i = M_{i-1} + φ(k_i)ᵀ v_i``, ``z_i = z_{i-1} + φ(k_i)``, read as
    ``φ(q/√D) M_i / (φ(q/√D) · z_i)``.

    Katharopoulos et al. 2020, eqs. 10-12 and 18-20. The sums grow without bound and would freeze in float32; the
    read is a ratio, so their *means* are kept instead, with Kahan's carry (see ``CumulativeAverage``).
    """

    type_name = "linear_attention"
    about = About(
        formula="`M_i = M_{i-1} + φ(k_i)ᵀ v_i`, read as `φ(q/√D) M_i / (φ(q/√D)·z_i)`, `z_i = z_{i-1} + φ(k_i)`",
        use="for association from key to value, at a cost that does not depend on the length of the past. It "
        "only adds.",
        nbytes="8*H*D*(D + 1)",
        example=({"type": "window", "window": 6}, {"type": "linear_attention"}),
    )

    def states(self) -> tuple[StateSpec, ...]:
        """Mean of ``φ(k)ᵀ [v, 1]``, and its carry, each ``[H, D, D + 1]``."""
        shape = (self.dims.kv_heads, self.dims.head_dim, self.dims.head_dim + 1)
        return (StateSpec("mean", shape), StateSpec("carry", shape))

    def operator(self, x: Tensor, clock: Clock) -> Operator:
        """``LinearAttention``."""
        return Operator("LinearAttention", (clock.start,), {"scale": self.dims.scale})

    def forward(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The read and the new mean."""
        clock = chunk.clock
        k, values = torch.split(chunk.pairs, self.dims.kv_heads, dim=1)
        q, k = F.elu(chunk.q_scaled.float()) + 1, F.elu(k) + 1
        v = torch.cat([values, torch.ones_like(values[..., :1])], dim=-1)  # [B, H, T, D + 1]
        weights = (q @ k.transpose(-1, -2)) * chunk.rows(clock.causal_ones()[None, None])  # [B, H, R, T]
        sums = weights @ v
        before = clock.start.float()[:, None, None, None]  # pairs in the mean so far
        taken = v[..., -1:].sum(dim=2, keepdim=True)  # T: after - before would be rounded beyond 2^24
        after = clock.counts()[:, :, -1:]
        if past is None:
            mean = carry = torch.zeros_like(k.transpose(-1, -2)[..., :1] * v[:, :, :1])
        else:
            mean, carry = past["mean"], past["carry"]
            sums = sums + before * (q @ (mean + carry))
        total, mass = torch.split(sums, [self.dims.head_dim, 1], dim=-1)
        step = carry + (k.transpose(-1, -2) @ v - taken * (mean + carry)) / after
        new_mean = mean + step
        read = (total / mass).to(chunk.q.dtype)
        return read, {"mean": new_mean, "carry": step - (new_mean - mean)}
