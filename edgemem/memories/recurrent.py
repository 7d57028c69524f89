"""The general recurrent update, ``Mem_i = f((k_i, v_i), Mem_{i-1})``: matrix memories, and an f of your own.

Symbols::

    M, S_i    matrix memory, [D, D]: rows for keys, columns for values
    φ         feature map, elu(x) + 1
    a_i       decay of step i, in (0, 1)
    β_i       write strength of step i, in (0, 1)
    u_t       what step t writes, once what is already there for its key has been subtracted
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.contract import StateSpec, initial_state
from edgemem.memories.averages import Bias, Summary, decay_matrix, wide_linear
from edgemem.memories.base import Chunk, Dims, MatrixMemory, States, register_memory


@register_memory
class LinearAttention(MatrixMemory):
    """``M_i = M_{i-1} + φ(k_i)ᵀ v_i``, ``z_i = z_{i-1} + φ(k_i)``, read as ``φ(q) M_i / (φ(q) · z_i)``.

    Katharopoulos et al. 2020, eqs. 10-12 and 18-20. The sums grow without bound and would freeze in float32; the
    read is a ratio, so their *means* are kept instead, with Kahan's carry (see ``CumulativeAverage``).
    """

    type_name = "linear_attention"

    def states(self) -> tuple[StateSpec, ...]:
        """Mean of ``φ(k)ᵀ [v, 1]``, and its carry, each ``[H, D, D + 1]``."""
        shape = (self.dims.kv_heads, self.dims.head_dim, self.dims.head_dim + 1)
        return (StateSpec("mean", shape), StateSpec("carry", shape))

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


@register_memory
class GatedDelta(MatrixMemory):
    """``S_i = a_i (I - β_i k_i k_iᵀ) S_{i-1} + β_i k_i v_iᵀ``, read as ``S_iᵀ q_i``; ``k`` and ``q`` of unit length.

    The gated delta rule (Yang et al. 2024, "Gated Delta Networks", eq. 10). A chunk solves for all its writes at once:
    ``(I + A) U = β (V - decay · K S_0)`` with ``A[t, j] = β_t · decay(j→t) · (k_t · k_j)`` for ``j < t``. The inverse
    of the triangular ``I + A`` is built from its diagonal blocks, doubling their size: ordinary matrix products, no
    loop over time in the graph, and as stable as substitution.
    """

    type_name = "gated_delta"
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
        """The inverse's doublings are laid down at export."""
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
        left = within[:, :, -1, :, None] * k  # decay from each step to the last
        return read.to(chunk.q.dtype), {"matrix": new + left.transpose(-1, -2) @ u}

    def _inverse(self, a: Tensor, offsets: Tensor) -> Tensor:
        """``(I + a)^-1`` of a strictly lower triangular ``a`` [..., T, T].

        With the inverse ``X`` of the diagonal blocks of size ``s``, that of the blocks of size ``2s`` is
        ``X - X a' X``, where ``a'`` is what of ``a`` lies below the diagonal inside a block of ``2s``.
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


class RecurrentMemory(Summary):
    """Base for an f of your own: one slot, updated step by step.

    Subclass it, declare ``states``, write :meth:`update` for **one** time step in plain tensor operations, register
    the class, and name it in a configuration::

        @register_memory
        class Peak(RecurrentMemory):
            type_name = "peak"
            def states(self):
                return (StateSpec("pair", (2 * self.dims.kv_heads, self.dims.head_dim), initial=-1e9),)
            def update(self, pair, x, state):
                peak = torch.maximum(state["pair"], pair)
                return peak, {"pair": peak}

    A chunk is the step repeated (in the graph: one ONNX Scan), so that f may be anything, at the price of a prefill
    that runs no faster than stepping.
    """

    has_count = False

    def __init__(self, dims: Dims, bias: Bias = "learned") -> None:
        super().__init__(dims, bias)

    @abstractmethod
    def update(self, pair: Tensor, x: Tensor, state: States) -> tuple[Tensor, dict[str, Tensor]]:
        """One application of f.

        Args:
            pair: The step's un-rotated keys, then its values, float32 ``[B, 2H, D]``.
            x: The layer's input of the step ``[B, C]``.
            state: What the last step left, ``[B, *shape]`` each.

        Returns:
            The summary to attend to, float32 ``[B, 2H, D]``, and the new states.
        """

    def summarise(self, chunk: Chunk, past: States | None) -> tuple[Tensor, dict[str, Tensor]]:
        """f, applied to every time step in turn."""
        pairs, inputs = chunk.pairs, chunk.x
        names = [spec.name for spec in self.states()]
        if past is None:
            batch = pairs.shape[0]
            state = {s.name: torch.from_numpy(initial_state(s, batch)).to(pairs.device) for s in self.states()}
        else:
            state = dict(past)
        if torch.compiler.is_exporting():
            return self._scan(pairs, inputs, [state[name] for name in names], names)
        summaries = []
        for t in range(chunk.clock.time):
            summary, state = self.update(pairs[:, :, t], inputs[:, t], state)
            summaries.append(summary)
        return torch.stack(summaries, dim=2), state

    def _scan(
        self, pairs: Tensor, inputs: Tensor, state: list[Tensor], names: list[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        from torch._higher_order_ops.scan import scan

        def combine(carry: list[Tensor], step: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            summary, new = self.update(step[0], step[1], dict(zip(names, carry, strict=True)))
            # Scan wants a carry that shares no memory with an output.
            return [new[name].clone() for name in names], summary.clone()

        last, summaries = scan(combine, state, [pairs.permute(2, 0, 1, 3), inputs.transpose(0, 1)])
        return summaries.permute(1, 2, 0, 3), dict(zip(names, last, strict=True))
