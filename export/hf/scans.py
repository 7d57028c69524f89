"""Recurrences of transformers' models as scans or blocks: chunks of any length, from any state, in one graph.

transformers writes these as Python loops over the time steps, which a trace unrolls, and some of its chunk forms start
from zero whatever the state. Each function here has the signature of the one that it replaces; see
:mod:`edgemem.export.hf.recurrences`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Carry = tuple[Tensor, ...]


def scan(step: Callable[[Carry, Carry], tuple[Carry, Tensor]], carry: Carry, xs: Carry) -> tuple[Carry, Tensor]:
    """``carry, y[t] = step(carry, xs[t])`` over the first axis; an ONNX Scan in a trace, a loop outside.

    Returns:
        The last carry, and every ``y`` along a new first axis.
    """
    if torch.compiler.is_exporting():
        from torch._higher_order_ops.scan import scan as traced

        # A scan wants its carry to have the memory layout that its step returns.
        begin = tuple(value.clone(memory_format=torch.contiguous_format) for value in carry)
        return traced(step, begin, xs, dim=0)  # type: ignore[no-any-return]
    outputs = []
    for now in zip(*xs, strict=True):
        carry, output = step(carry, now)
        outputs.append(output)
    return carry, torch.stack(outputs)


def selective_scan(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803 (the paper's names)
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    D: Tensor | None = None,  # noqa: N803
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
    **_: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba's recurrence (Gu and Dao 2023, equation 2): ``h = exp(dt A) h + dt B x``, ``y = C h + D x``.

    Args:
        hidden_states: ``x``, ``[B, E, T]``.
        dt: Step sizes ``[B, E, T]``.
        A: ``[E, N]``.
        B: ``[B, N, T]``.
        C: ``[B, N, T]``.
        D: ``[E]``.
        z: Gate ``[B, E, T]``.
        delta_bias: Added to ``dt``, ``[E]``.
        delta_softplus: Whether a softplus is applied to ``dt``.
        return_last_state: Also return ``h``.
        initial_state: ``h`` before the chunk, ``[B, E, N]``; zero at the start of a stream.
    """
    dtype = hidden_states.dtype
    if delta_bias is not None:
        dt = dt + delta_bias.to(dt.dtype)[..., None]
    if delta_softplus:
        dt = F.softplus(dt)
    steps = dt.float().permute(2, 0, 1)[..., None]  # [T, B, E, 1]
    decay = torch.exp(steps * A.float())  # [T, B, E, N]
    drive = steps * hidden_states.float().permute(2, 0, 1)[..., None] * B.float().permute(2, 0, 1)[:, :, None]
    if initial_state is None:
        initial_state = torch.zeros_like(drive[0])

    def step(carry: Carry, now: Carry) -> tuple[Carry, Tensor]:
        a, b, c = now
        h = a * carry[0] + b
        return (h,), torch.matmul(h, c[..., None]).squeeze(-1)

    (last,), outputs = scan(step, (initial_state.float(),), (decay, drive, C.float().permute(2, 0, 1)))
    result = outputs.permute(1, 2, 0)  # [B, E, T]
    if D is not None:
        result = result + hidden_states * D[None, :, None]
    if z is not None:
        result = result * F.silu(z)
    result = result.to(dtype)
    return (result, last) if return_last_state else result


def state_space_duality(
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,  # noqa: N803
    B: Tensor,  # noqa: N803
    C: Tensor,  # noqa: N803
    chunk_size: int = 0,
    D: Tensor | None = None,  # noqa: N803
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, float("inf")),
    return_final_states: bool = False,
    **_: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """Mamba-2's recurrence as one block, without a loop (Dao and Gu 2024, section 6).

    transformers cuts a call into blocks of ``chunk_size`` and pads the last one: a call of one time step to 256. Here a
    call is at most a bundle's largest chunk, and is one block of its own size.

    Args:
        hidden_states: ``x``, ``[B, T, H, P]``.
        dt: Step sizes ``[B, T, H]``.
        A: ``[H]``.
        B: ``[B, T, G, N]``, each for several heads.
        C: The same.
        chunk_size: Not used.
        D: ``[H]``.
        dt_bias: Added to ``dt``, ``[H]``.
        initial_states: The state before the chunk, ``[B, H, P, N]``.
        dt_softplus: Whether a softplus is applied to ``dt``.
        dt_limit: Bounds of ``dt``.
        return_final_states: Also return the state.
    """
    heads = hidden_states.shape[2]
    if dt_bias is not None:
        dt = dt + dt_bias.to(dt.dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    dt = torch.clamp(dt, min=dt_limit[0], max=dt_limit[1]).float().transpose(1, 2)  # [B, H, T]
    x = hidden_states.float().transpose(1, 2)  # [B, H, T, P]
    b, c = (y.float().repeat_interleave(heads // y.shape[2], dim=2).transpose(1, 2) for y in (B, C))  # [B, H, T, N]
    driven = x * dt[..., None]
    log_decay = torch.cumsum(dt * A.float()[:, None], dim=-1)  # [B, H, T]
    index = torch.arange(x.shape[2], device=x.device)
    between = log_decay[..., None] - log_decay[..., None, :]  # [B, H, T, T]
    between = between.masked_fill(index[:, None] < index, float("-inf"))
    result = (c @ b.transpose(-1, -2) * between.exp()) @ driven
    to_end = (log_decay[..., -1:] - log_decay).exp()  # [B, H, T]
    last = (driven * to_end[..., None]).transpose(-1, -2) @ b  # [B, H, P, N]
    if initial_states is not None:
        state = initial_states.float()
        result = result + (c @ state.transpose(-1, -2)) * log_decay.exp()[..., None]
        last = last + state * log_decay[..., -1].exp()[..., None, None]
    if D is not None:
        result = result + x * D.float()[:, None, None]
    result = result.transpose(1, 2).contiguous()
    return (result, last) if return_final_states else result


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **_: Any,
) -> tuple[Tensor, Tensor | None]:
    """The gated delta rule (Yang et al. 2024, equation 10): ``S = a S + k (b (v - k a S))``, ``y = q S``.

    Args:
        query: ``[B, T, H, K]``, or with fewer heads, each for several heads of the values.
        key: The same.
        value: ``[B, T, H, V]``.
        g: Logarithm of the decay ``a``: ``[B, T, H]``, or ``[B, T, H, K]`` with a decay for each channel.
        beta: ``[B, T, H]``.
        initial_state: ``S`` before the chunk, ``[B, H, K, V]``.
        output_final_state: Also return ``S``.
        use_qk_l2norm_in_kernel: Whether to normalise queries and keys.
    """
    dtype = query.dtype
    q, k, v, decay, b = (x.float().transpose(0, 1) for x in (query, key, value, g, beta))  # [T, B, H, ...]
    if use_qk_l2norm_in_kernel:
        q, k = (x * torch.rsqrt((x * x).sum(dim=-1, keepdim=True) + 1e-6) for x in (q, k))
    if (groups := v.shape[2] // k.shape[2]) > 1:
        # TensorRT-RTX 1.7 does not compile a repeat_interleave before a Scan for a batch of one.
        heads = torch.tensor([head // groups for head in range(v.shape[2])], device=v.device)
        q, k = (x.index_select(2, heads) for x in (q, k))
    q = q / (q.shape[-1] ** 0.5)
    decay = decay.exp()[..., None] if g.dim() == 4 else decay.exp()[..., None, None]  # [T, B, H, K or 1, 1]
    if initial_state is None:
        initial_state = torch.zeros_like(k[0][..., None] * v[0][..., None, :])

    def step(carry: Carry, now: Carry) -> tuple[Carry, Tensor]:
        q_t, k_t, v_t, a_t, b_t = now
        kept = carry[0] * a_t
        read = torch.matmul(k_t[..., None, :], kept)  # [B, H, 1, V]
        new = kept + k_t[..., None] * ((v_t[..., None, :] - read) * b_t[..., None, None])
        return (new,), torch.matmul(q_t[..., None, :], new).squeeze(-2)

    (last,), outputs = scan(step, (initial_state.float(),), (q, k, v, decay, b))
    return outputs.transpose(0, 1).to(dtype), last if output_final_state else None


def rwkv_linear_attention(
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    state: Any = None,
    return_state: bool = False,
) -> tuple[Tensor, Any]:
    """RWKV's weighted average over the past (Peng et al. 2023, equation 16), with a running maximum for stability.

    Args:
        time_decay: Logarithm of the decay ``[H]``.
        time_first: Extra weight of the newest token ``[H]``.
        key: ``[B, T, H]``.
        value: ``[B, T, H]``.
        state: Numerator, denominator and maximum, each ``[B, H]``.
        return_state: Also return them.
    """
    k, v = (x.float().transpose(0, 1) for x in (key, value))
    first, decay = time_first.float(), -torch.exp(time_decay.float())
    if state is None:
        state = (torch.zeros_like(k[0]), torch.zeros_like(k[0]), torch.full_like(k[0], -1e38))

    def step(carry: Carry, now: Carry) -> tuple[Carry, Tensor]:
        numerator, denominator, largest = carry
        k_t, v_t = now
        top = torch.maximum(largest, k_t + first)
        past, present = torch.exp(largest - top), torch.exp(k_t + first - top)
        output = (past * numerator + present * v_t) / (past * denominator + present)
        top = torch.maximum(largest + decay, k_t)
        past, present = torch.exp(largest + decay - top), torch.exp(k_t - top)
        return (past * numerator + present * v_t, past * denominator + present, top), output

    last, outputs = scan(step, tuple(state), (k, v))
    return outputs.transpose(0, 1).to(key.dtype), list(last) if return_state else None
