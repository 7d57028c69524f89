"""The gated delta rule: a matrix memory that overwrites what it holds for a key.

Symbols::

    S_i       matrix memory, [D, D]: rows for keys, columns for values
    a_i       decay of step i, in (0, 1)
    β_i       write strength of step i, in (0, 1)
    u_t       what step t writes, after subtracting what is already stored for its key
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, Dims, MatrixMemory, States
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import decay_matrix, wide_linear


@register_memory
class GatedDelta(MatrixMemory):
    """``S_i = a_i (I - β_i k_i k_iᵀ) S_{i-1} + β_i k_i v_iᵀ``, read as ``S_iᵀ q_i``; ``k`` and ``q`` of unit length.

    The gated delta rule (Yang et al. 2024, "Gated Delta Networks", eq. 10). A chunk solves for all its writes at once:
    ``(I + A) U = β (V - decay · K S_0)`` with ``A[t, j] = β_t · decay(j→t) · (k_t · k_j)`` for ``j < t``. The inverse
    of the triangular ``I + A`` is built from its diagonal blocks, doubling their size: ordinary matrix products, no
    loop over time in the graph, and as stable as substitution.
    """

    type_name = "gated_delta"
    about = About(
        formula="`S_i = a_i (I - β_i k_i k_iᵀ) S_{i-1} + β_i k_i v_iᵀ`, read as `S_iᵀ q_i`, `k` and `q` of unit length",
        use="for association from key to value, at a cost that does not depend on the length of the past. It "
        "overwrites what it holds for a key, and takes at most 64 steps a call.",
        nbytes="4*H*D**2",
        example=({"type": "gated_delta"},),
    )
    _DOUBLINGS_EXPORTED = 6

    def __init__(self, dims: Dims) -> None:
        super().__init__(dims)
        self.gates = nn.Linear(dims.model, 2 * dims.kv_heads)
        nn.init.normal_(self.gates.weight, std=0.02)
        with torch.no_grad():
            self.gates.bias[: dims.kv_heads] = 4.0  # a: keep 98 % at first
            self.gates.bias[dims.kv_heads :] = 0.0  # β: write half

    @property
    def max_chunk(self) -> int:
        """The number of doublings is fixed at export."""
        return 1 << self._DOUBLINGS_EXPORTED

    def states(self) -> tuple[StateSpec, ...]:
        """``S``, ``[H, D, D]``."""
        return (StateSpec("matrix", (self.dims.kv_heads, self.dims.head_dim, self.dims.head_dim)),)

    def forward(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The read and the new matrix."""
        clock = chunk.clock
        logits = wide_linear(self.gates, chunk.x).transpose(1, 2).unsqueeze(-1)  # [B, 2H, T, 1]
        a_logit, b_logit = logits.chunk(2, dim=1)
        beta = torch.sigmoid(b_logit)
        within, carried = decay_matrix(clock.causal_ones(), F.logsigmoid(a_logit))  # [B, H, T, T], [B, H, T, 1]
        k, v = torch.split(chunk.pairs, self.dims.kv_heads, dim=1)
        q, k = _unit(chunk.q_scaled.float()), _unit(k)
        earlier = clock.causal_ones() - torch.eye(clock.time, device=k.device)
        a = beta * within * earlier * (k @ k.transpose(-1, -2))
        right = beta * v
        reads = chunk.rows(within) * (q @ k.transpose(-1, -2))  # [B, H, R, T]
        if past is None:
            u = self._inverse(a, clock.offsets) @ right
            read = reads @ u
            new = torch.zeros_like(k.transpose(-1, -2) @ u)
        else:
            matrix = past["matrix"]
            u = self._inverse(a, clock.offsets) @ (right - beta * carried * (k @ matrix))
            read = reads @ u + chunk.rows(carried) * (q @ matrix)
            new = carried[:, :, -1:] * matrix
        if chunk.surprise is None:
            chunk.surprise = u.detach().norm(dim=-1, keepdim=True)
        left = within[:, :, -1, :, None] * k  # decay from each step to the last
        return read.to(chunk.q.dtype), {"matrix": new + left.transpose(-1, -2) @ u}

    def _inverse(self, a: Tensor, offsets: Tensor) -> Tensor:
        """``(I + a)^-1`` of a strictly lower triangular ``a`` [..., T, T].

        With the inverse ``X`` of the diagonal blocks of size ``s``, that of the blocks of size ``2s`` is
        ``X - X a' X``, where ``a'`` is the part of ``a`` inside the blocks of size ``2s`` and outside those of size
        ``s``.
        """
        exporting = torch.compiler.is_exporting()
        doublings = self._DOUBLINGS_EXPORTED if exporting else max(a.shape[-1] - 1, 0).bit_length()
        x = torch.eye(a.shape[-1], device=a.device).expand_as(a)
        for doubling in range(doublings):
            block, pair = offsets // (1 << doubling), offsets // (2 << doubling)
            joined = (pair[:, None] == pair) & (block[:, None] != block)
            x = x - x @ (a * joined) @ x
        return x


def _unit(x: Tensor) -> Tensor:
    """``x / sqrt(x·x + 1e-6)`` along the last axis: length 1, and a zero vector stays zero."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
