"""The gated delta rule: a matrix memory that overwrites what it holds for a key.

Symbols::

    S_i       matrix memory, [D, D]: rows for keys, columns for values
    a_i       decay of step i, in (0, 1)
    β_i       write strength of step i, in (0, 1)
    u_t       what step t writes, after subtracting what is already stored for its key
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.contract import StateSpec
from edgemem.memories.base import About, Chunk, Dims, MatrixMemory, Operator, States
from edgemem.memories.clock import Clock
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import decay_matrix, wide_linear


@register_memory
class GatedDelta(MatrixMemory):
    """``S_i = a_i (I - β_i k_i k_iᵀ) S_{i-1} + β_i k_i v_iᵀ``, read as ``S_iᵀ q_i``; ``k`` and ``q`` of unit length.

    The gated delta rule (Yang et al. 2024, "Gated Delta Networks", eq. 10). A chunk solves for all its writes at once:
    ``(I + A) U = β (V - decay · K S_0)`` with ``A[t, j] = β_t · decay(j→t) · (k_t · k_j)`` for ``j < t``. In a graph
    the inverse of the triangular ``I + A`` is built from its diagonal blocks, doubling their size: ordinary matrix
    products, no loop over time, and as stable as substitution. Torch substitutes.
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
        """The number of doublings in a graph is fixed."""
        return 1 << self._DOUBLINGS_EXPORTED

    def states(self) -> tuple[StateSpec, ...]:
        """``S``, ``[H, D, D]``."""
        return (StateSpec("matrix", (self.dims.kv_heads, self.dims.head_dim, self.dims.head_dim)),)

    def operator(self, x: Tensor, clock: Clock) -> Operator:
        """``GatedDelta``: it scales the queries, and then divides them by their length."""
        return Operator("GatedDelta", (None, None, self._logits(x), None), {"unit": 2, "scale": self.dims.scale})

    def _logits(self, x: Tensor) -> Tensor:
        """Logits of ``a`` and of ``β``, float32 ``[B, T, 2H]``."""
        return wide_linear(self.gates, x)

    def forward(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The read and the new matrix. A longer call than a graph takes is computed in parts: its cost is linear."""
        logits = self._logits(chunk.x).transpose(1, 2).unsqueeze(-1)  # [B, 2H, T, 1]
        log_a, beta = F.logsigmoid(logits[:, : self.dims.kv_heads]), torch.sigmoid(logits[:, self.dims.kv_heads :])
        k, v = torch.split(chunk.pairs, self.dims.kv_heads, dim=1)
        grouped = (k.shape[0], self.dims.kv_heads, self.dims.groups, -1, self.dims.head_dim)
        q, k = _unit(chunk.q_scaled.float()).reshape(grouped), _unit(k)  # q [B, H, G, T, D]
        matrix = None if past is None else past["matrix"]
        reads, writes = [], []
        for part in self._parts(chunk.clock.time):
            read, write, matrix = self._part(
                chunk,
                q[:, :, :, part].flatten(2, 3),
                k[:, :, part],
                v[:, :, part],
                log_a[:, :, part],
                beta[:, :, part],
                matrix,
            )
            reads.append(read.reshape(grouped))
            writes.append(write)
        if chunk.written is None:
            chunk.written = torch.cat(writes, dim=2)
        assert matrix is not None
        return torch.cat(reads, dim=3).flatten(2, 3).to(chunk.q.dtype), {"matrix": matrix}

    def _parts(self, time: int) -> list[slice]:
        """The parts of a call of so many steps. A graph has one: its number of steps is no number yet."""
        if torch.compiler.is_exporting():
            return [slice(None)]
        return [slice(at, min(at + self.max_chunk, time)) for at in range(0, time, self.max_chunk)]

    def _part(
        self, chunk: Chunk, q: Tensor, k: Tensor, v: Tensor, log_a: Tensor, beta: Tensor, matrix: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The reads, the writes ``u`` and the new matrix of some consecutive steps."""
        first = slice(None) if torch.compiler.is_exporting() else slice(k.shape[2])
        ones = chunk.clock.causal_ones()[first, first]
        within, carried = decay_matrix(ones, log_a)  # [B, H, T, T], [B, H, T, 1]
        earlier = ones - torch.eye(k.shape[2], device=k.device)
        a = beta * within * earlier * (k @ k.transpose(-1, -2))
        right = beta * v
        shares = chunk.rows(within) * (q @ k.transpose(-1, -2))  # [B, H, R, T]
        left = (within[:, :, -1, :, None] * k).transpose(-1, -2)  # decay from each step to the last
        if matrix is None:
            u = self._solved(a, right, chunk.clock)
            return shares @ u, u, left @ u
        u = self._solved(a, right - beta * carried * (k @ matrix), chunk.clock)
        return shares @ u + chunk.rows(carried) * (q @ matrix), u, carried[:, :, -1:] * matrix + left @ u

    def _solved(self, a: Tensor, right: Tensor, clock: Clock) -> Tensor:
        """``(I + a)^-1 right`` for a strictly lower triangular ``a`` [..., T, T].

        ONNX has no such operator. A graph has the inverse: with the inverse ``X`` of the diagonal blocks of size ``s``,
        that of the blocks of size ``2s`` is ``X - X a' X``, where ``a'`` is the part of ``a`` inside the blocks of size
        ``2s`` and outside those of size ``s``.
        """
        x = torch.eye(a.shape[-1], device=a.device).expand_as(a)
        if not torch.compiler.is_exporting():
            solved: Tensor = torch.linalg.solve_triangular(x + a, right, upper=False, unitriangular=True)
            return solved
        for doubling in range(self._DOUBLINGS_EXPORTED):
            size = 1 << doubling
            joined = clock.once(("joined", size), partial(_joined, clock.offsets, size))
            x = x - x @ (a * joined) @ x
        return x @ right


def _joined(offsets: Tensor, size: int) -> Tensor:
    """Which steps are in one block of ``2·size`` and in two of ``size``, bool ``[T, T]``."""
    block, pair = offsets // size, offsets // (2 * size)
    return (pair[:, None] == pair) & (block[:, None] != block)


def _unit(x: Tensor) -> Tensor:
    """``x / sqrt(x·x + 1e-6)`` along the last axis: length 1, and a zero vector stays zero."""
    return x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6)
