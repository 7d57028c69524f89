"""The scans compute what transformers' own recurrences compute, and continue from any state."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

from edgemem.export.hf.scans import (  # noqa: E402
    gated_delta_rule,
    rwkv_linear_attention,
    selective_scan,
    state_space_duality,
)

B, T = 2, 9


def cuts(test):
    return settings(deadline=None, max_examples=25)(given(cut=st.integers(1, T - 1), seed=st.integers(0, 99))(test))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


@cuts
def test_a_selective_scan_is_mambas_and_goes_on_where_it_stopped(cut, seed):
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    torch.manual_seed(seed)
    x, dt, z = random(B, 6, T), random(B, 6, T), random(B, 6, T)
    a, b, c, d, bias = -random(6, 4).exp(), random(B, 4, T), random(B, 4, T), random(6), random(6)
    options = {"D": d, "delta_bias": bias, "delta_softplus": True, "return_last_state": True}
    expected, last = mamba_selective_scan(x, dt, a, b, c, z=z, **options)
    got, state = [], None
    for part in (slice(0, cut), slice(cut, T)):
        timed = [value[..., part] for value in (x, dt, b, c, z)]
        y, state = selective_scan(timed[0], timed[1], a, timed[2], timed[3], z=timed[4], initial_state=state, **options)
        got.append(y)
    torch.testing.assert_close(torch.cat(got, dim=-1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


@cuts
def test_a_block_is_mamba_2s_and_goes_on_where_it_stopped(cut, seed):
    from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

    torch.manual_seed(seed)
    x, dt, a = random(B, T, 4, 6), random(B, T, 4), -random(4).exp()
    b, c, d, bias = random(B, T, 2, 5), random(B, T, 2, 5), random(4), random(4)
    options = {"chunk_size": 4, "D": d, "dt_bias": bias, "dt_softplus": True, "return_final_states": True}
    expected, last = mamba2_chunk_scan(x, dt, a, b, c, **options)
    got, state = [], None
    for part in (slice(0, cut), slice(cut, T)):
        xs, dts, bs, cs = (value[:, part] for value in (x, dt, b, c))
        y, state = state_space_duality(xs, dts, a, bs, cs, initial_states=state, **options)
        got.append(y)
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(state, last, atol=1e-4, rtol=1e-4)


@cuts
def test_the_gated_delta_rule_is_qwens_and_goes_on_where_it_stopped(cut, seed):
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

    torch.manual_seed(seed)
    q, k, v = random(B, T, 2, 8), random(B, T, 2, 8), random(B, T, 4, 8)
    g, beta = -random(B, T, 4).exp(), random(B, T, 4).sigmoid()
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    expected, last = torch_recurrent_gated_delta_rule(q, k, v, g, beta, **options)
    got, state = [], None
    for part in (slice(0, cut), slice(cut, T)):
        y, state = gated_delta_rule(*(x[:, part] for x in (q, k, v, g, beta)), initial_state=state, **options)
        got.append(y)
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, last, atol=1e-5, rtol=1e-5)


def test_a_decay_for_each_channel_is_kimis():
    from transformers.models.kimi_linear.modeling_kimi_linear import recurrent_kimi_delta_attention

    torch.manual_seed(0)
    q, k, v, g = random(B, T, 2, 8), random(B, T, 2, 8), random(B, T, 2, 8), -random(B, T, 2, 8).exp()
    beta, state = random(B, T, 2).sigmoid(), random(B, 2, 8, 8)
    options = {"initial_state": state, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    for got, expected in zip(
        gated_delta_rule(q, k, v, g, beta, **options),
        recurrent_kimi_delta_attention(q, k, v, g, beta, **options),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@cuts
def test_rwkvs_average_is_its_own_and_goes_on_where_it_stopped(cut, seed):
    from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

    torch.manual_seed(seed)
    decay, first, k, v = random(6), random(6), 3 * random(B, T, 6), random(B, T, 6)
    expected, last = rwkv_linear_attention_cpu(decay, first, k, v, return_state=True)
    got, state = [], None
    for part in (slice(0, cut), slice(cut, T)):
        y, state = rwkv_linear_attention(decay, first, k[:, part], v[:, part], state, return_state=True)
        got.append(y)
    torch.testing.assert_close(torch.cat(got, dim=1), expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(state, last, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_call_leaves_nothing_behind_that_looks_like_a_hidden_state():
    """Zamba scans one head after the other: which one is next is forgotten after the call."""
    from edgemem.export.hf.recurrences import Recurrences

    class Cache:
        def get_recurrent_state(self, layer_idx: int) -> torch.Tensor:
            return random(B, 2, 6, 4)

    recurrences, cache = Recurrences(torch.nn.Linear(1, 1)), Cache()
    before = dict(vars(recurrences))
    with recurrences.of_chunk(cache):
        cache.get_recurrent_state(3)
        inputs = (random(B, 6, T), random(B, 6, T), -random(6, 4).exp(), random(B, 4, T), random(B, 4, T))
        recurrences._selective_scan(*inputs, return_last_state=True)
    assert vars(recurrences) == before
