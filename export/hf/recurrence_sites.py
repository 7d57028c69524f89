"""Marks around the recurrences of transformers' models: one of edgemem's operators computes what lies between them.

Each function here wraps one of transformers' functions, or of :mod:`edgemem.export.hf.scans`, and is called as it is.
Outside a trace for ONNX it only calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from edgemem.memories.site import begin_recurrence, end, is_marking

Function = Callable[..., Any]
UNBOUNDED = {"least": 0.0, "most": torch.finfo(torch.float32).max}


def _in_traces(mark: Callable[..., Any]) -> Callable[[Function], Function]:
    """``mark(compute, ...)`` in a trace for ONNX, else ``compute(...)``."""

    def wrap(compute: Function) -> Function:
        @wraps(compute)
        def called(*args: Any, **kwargs: Any) -> Any:
            return mark(compute, *args, **kwargs) if is_marking() else compute(*args, **kwargs)

        return called

    return wrap


@_in_traces
def convolution_step(
    compute: Function,
    hidden_states: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """``causal_conv1d_update``: ``CausalConv``."""
    if activation not in (None, "silu", "swish"):
        return compute(hidden_states, conv_state, weight, bias, activation)  # type: ignore[no-any-return]
    after = conv_state.clone()
    inputs = [hidden_states.transpose(1, 2), conv_state, weight, bias]
    x = begin_recurrence("CausalConv", hidden_states, inputs, {"silu": int(activation is not None)})
    y = end([compute(x, after, weight, bias, activation), after], "steps_last")
    conv_state.copy_(after)
    return y


@_in_traces
def selective_step(
    compute: Function,
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    D: Tensor | None = None,  # noqa: N803 (its name in calls)
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """``mamba_selective_state_update`` and ``mamba2_selective_state_update``: ``SelectiveState``."""
    after, per_head = state.clone(), state.dim() == 4  # [B, H, P, N]: what a head shares was repeated for its rows

    def of_head(value: Tensor | None) -> Tensor | None:
        return value[..., 0] if value is not None and per_head else value

    sizes, bias, skip = of_head(dt), of_head(dt_bias), of_head(D)
    assert sizes is not None
    x, gate = (None if y is None else y.reshape(y.shape[0], 1, -1) for y in (hidden_states, z))
    inputs = [x, sizes[:, None], of_head(of_head(a)), b[:, None], c[:, None], state, skip, bias, gate]
    given = begin_recurrence("SelectiveState", hidden_states, inputs, {"softplus": int(dt_softplus), **UNBOUNDED})
    y = compute(after, given, dt, a, b, c, D, dt_bias=dt_bias, dt_softplus=dt_softplus, z=z, **kwargs)
    y = end([y, after], "reshape")
    state.copy_(after)
    return y


@_in_traces
def selective_chunk(
    compute: Function,
    hidden_states: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    **options: Any,
) -> Any:
    """:func:`edgemem.export.hf.scans.selective_scan`: ``SelectiveState``."""
    state = options.get("initial_state")
    if state is None or not options.get("return_last_state"):
        return compute(hidden_states, dt, a, b, c, **options)
    x, steps, per_step_b, per_step_c = (value.transpose(1, 2) for value in (hidden_states, dt, b, c))
    gate = options.get("z")
    inputs = [x, steps, a, per_step_b, per_step_c, state, options.get("D"), options.get("delta_bias")]
    inputs.append(None if gate is None else gate.transpose(1, 2))
    softplus = {"softplus": int(bool(options.get("delta_softplus"))), **UNBOUNDED}
    given = begin_recurrence("SelectiveState", hidden_states, inputs, softplus)
    y, last = compute(given, dt, a, b, c, **options)
    return end([y, last], "steps_last"), last


@_in_traces
def duality_chunk(
    compute: Function,
    hidden_states: Tensor,
    dt: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    **options: Any,
) -> Any:
    """:func:`edgemem.export.hf.scans.state_space_duality`: ``SelectiveState``."""
    state = options.get("initial_states")
    if state is None or not options.get("return_final_states") or options.get("z") is not None:
        return compute(hidden_states, dt, a, b, c, **options)
    least, most = options.get("dt_limit", (0.0, float("inf")))
    inputs = [hidden_states.flatten(2), dt, a, b, c, state, options.get("D"), options.get("dt_bias")]
    bounds = {"least": float(least), "most": min(float(most), UNBOUNDED["most"])}
    softplus = {"softplus": int(bool(options.get("dt_softplus"))), **bounds}
    given = begin_recurrence("SelectiveState", hidden_states, inputs, softplus)
    y, last = compute(given, dt, a, b, c, **options)
    return end([y, last], "reshape"), last


@_in_traces
def delta_rule(
    compute: Function,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    g: Tensor,
    beta: Tensor,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **options: Any,
) -> Any:
    """The gated delta rule, a step or a chunk: ``GatedDelta``."""
    rest = {
        "g": g,
        "beta": beta,
        "initial_state": initial_state,
        "output_final_state": output_final_state,
        "use_qk_l2norm_in_kernel": use_qk_l2norm_in_kernel,
        **options,
    }
    if initial_state is None or not output_final_state:
        return compute(query, key, value, **rest)
    inputs = [query.flatten(2), key.flatten(2), value.flatten(2), g, beta, initial_state]
    attributes = {"unit": int(use_qk_l2norm_in_kernel), "scale": float(query.shape[-1] ** -0.5)}
    y, last = compute(begin_recurrence("GatedDelta", query, inputs, attributes), key, value, **rest)
    return end([y, last], "reshape"), last


@_in_traces
def weighted_past(
    compute: Function,
    time_decay: Tensor,
    time_first: Tensor,
    key: Tensor,
    value: Tensor,
    state: Any = None,
    return_state: bool = False,
) -> Any:
    """RWKV's weighted average, a step or a chunk: ``WeightedPast``."""
    if state is None or not return_state:
        return compute(time_decay, time_first, key, value, state=state, return_state=return_state)
    given = begin_recurrence("WeightedPast", key, [time_decay, time_first, key, value, *state], {})
    y, after = compute(time_decay, time_first, given, value, state=state, return_state=True)
    return end([y, *after]), after


STEPS: Mapping[str, Callable[[Function], Function]] = {
    "causal_conv1d_update": convolution_step,
    "mamba_selective_state_update": selective_step,
    "mamba2_selective_state_update": selective_step,
    "torch_recurrent_gated_delta_rule": delta_rule,
    "recurrent_kimi_delta_attention": delta_rule,
    "rwkv_linear_attention": weighted_past,
}
"""What wraps transformers' functions in a step, by their names."""
