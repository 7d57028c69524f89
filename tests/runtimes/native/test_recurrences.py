"""The operators that carry a state from step to step, against their formulas in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.runtimes import native
from tests.runtimes.native import recurrence_oracle as oracle
from tests.runtimes.native.operators import run, session

LENGTHS = st.sampled_from([1, 1, 2, 5, 17])
SEEDS = st.integers(0, 99)


def compute(call, threads=1):
    """The outputs of one call, in the operator's order."""
    inputs = dict(call.inputs)
    while inputs and list(inputs.values())[-1] is None:  # a node ends with its last input
        inputs.popitem()
    outputs = dict.fromkeys(call.outputs, np.float32)
    made = session(call.operator, inputs, outputs, threads, **call.attributes)
    return list(run(made, inputs).values())


def hold(call):
    for name, got, want in zip(call.outputs, compute(call), call.expected(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-5, err_msg=name)


@settings(deadline=None, max_examples=15)
@given(LENGTHS, st.sampled_from([1, 3, 16, 70]), st.integers(1, 5), st.integers(0, 2), st.booleans(), SEEDS)
def test_a_causal_convolution(time, channels, taps, spare, plain, seed):
    hold(oracle.convolution(2, time, channels, taps, taps - 1 + spare or 1, plain, seed))


@settings(deadline=None, max_examples=25)
@given(
    LENGTHS,
    st.sampled_from([(1, 1, 1), (6, 1, 1), (70, 1, 1), (4, 5, 2), (2, 64, 1), (6, 17, 3)]),
    st.sampled_from([1, 3, 8, 16, 24, 128]),
    st.booleans(),
    st.booleans(),
    SEEDS,
)
def test_a_selective_state(time, heads, size, decay_of_each, plain, seed):
    hold(oracle.selection(2, time, heads, size, decay_of_each, plain, seed))


@settings(deadline=None, max_examples=25)
@given(
    LENGTHS,
    st.sampled_from([(1, 1), (2, 2), (4, 2)]),
    st.sampled_from([(1, 1), (5, 7), (16, 16), (64, 64), (40, 100), (128, 33)]),
    st.booleans(),
    st.booleans(),
    SEEDS,
)
def test_the_gated_delta_rule(time, heads, widths, decay_of_each, unit, seed):
    hold(oracle.delta_rule(2, time, heads, widths, decay_of_each, unit, seed))


MATRICES = st.sampled_from([(1, 1), (2, 1), (2, 3)])
WIDTHS = st.sampled_from([(1, 1), (5, 7), (16, 16), (64, 64), (40, 100), (128, 33)])


@settings(deadline=None, max_examples=25)
@given(LENGTHS, MATRICES, WIDTHS, SEEDS)
def test_the_gated_delta_rule_of_a_layer_whose_queries_keys_and_values_lie_side_by_side(time, heads, widths, seed):
    hold(oracle.joined_delta_rule(2, time, heads, widths, seed))


@settings(deadline=None, max_examples=25)
@given(LENGTHS, MATRICES, WIDTHS, SEEDS)
def test_linear_attention(time, heads, widths, seed):
    hold(oracle.linear_attention(2, time, heads, widths, seed))


def test_linear_attention_is_right_from_the_first_step_on_and_far_from_it():
    first = oracle.linear_attention(1, 3, (2, 1), (8, 8), 0, position=0)
    for name in ("mean", "carry"):
        first.inputs[name] = np.zeros_like(first.inputs[name])
    hold(first)
    hold(oracle.linear_attention(1, 3, (2, 1), (8, 8), 0, position=2**40))


def test_what_linear_attention_loses_in_rounding_is_kept():
    """At position 2^30, 20 steps move the mean by less than one unit in its last place."""
    call = oracle.linear_attention(1, 20, (1, 1), (4, 4), 0, position=2**30)
    call.inputs["carry"] *= 0
    _, mean, carry = compute(call)
    exact = call.expected()[1]
    got = mean.astype(np.float64) + carry
    moved = np.abs(exact - call.inputs["mean"]).max()
    assert np.abs(got - exact).max() < 0.01 * moved
    assert np.abs(mean - exact).max() > 0.1 * moved, "the mean alone would do: this test shows nothing"


@settings(deadline=None, max_examples=15)
@given(LENGTHS, st.sampled_from([1, 3, 16, 70, 130]), SEEDS)
def test_a_weighted_past(time, channels, seed):
    hold(oracle.weighted_past(2, time, channels, seed))


def large():
    """A call of each operator that is cut into several tasks."""
    return [
        oracle.convolution(3, 40, 300, 4, 4, False, 0),
        oracle.selection(3, 8, (200, 1, 1), 16, True, False, 0),
        oracle.selection(3, 8, (4, 48, 2), 64, False, False, 0),
        oracle.delta_rule(3, 4, (4, 2), (64, 160), False, True, 0),
        oracle.weighted_past(3, 40, 300, 0),
        oracle.joined_delta_rule(3, 8, (2, 2), (64, 160), 0),
        oracle.linear_attention(3, 8, (2, 2), (64, 160), 0),
    ]


@pytest.mark.parametrize("call", large(), ids=lambda call: f"{call.operator}_{call.timed[0]}")
def test_a_row_is_bit_equal_to_the_row_alone_with_any_number_of_threads(call):
    together = compute(call, threads=2)
    for row in range(3):
        for whole, alone in zip(together, compute(call.of_row(row)), strict=True):
            np.testing.assert_array_equal(whole[row : row + 1], alone)


@pytest.mark.parametrize("call", large(), ids=lambda call: f"{call.operator}_{call.timed[0]}")
def test_steps_continue_where_a_chunk_stopped(call):
    first, second = call.cut(3)
    begun = compute(first)
    after = compute(second.from_state(begun[1 : 1 + len(call.states)]))
    for whole, *parts in zip(compute(call)[:1], begun, after, strict=False):
        np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2", "neon"])
def test_every_instruction_set(level, monkeypatch):
    monkeypatch.setenv("EDGEMEM_NATIVE_LEVEL", level)
    if not native.look(native.library()).level:
        pytest.skip(f"this processor has no {level}")
    for call in large():
        hold(call)
    hold(oracle.delta_rule(1, 2, (2, 2), (20, 36), True, True, 1))
    hold(oracle.selection(1, 2, (7, 1, 1), 20, True, True, 1))
    hold(oracle.linear_attention(1, 2, (2, 2), (20, 36), 1))


@pytest.mark.parametrize("step", [-200.0, -30.0, 0.0, 30.0, 80.0])
def test_extreme_step_sizes(step):
    call = oracle.selection(1, 1, (3, 1, 1), 4, True, False, 0)
    call.inputs["dt"] = np.full_like(call.inputs["dt"], step)
    hold(call)


@pytest.mark.parametrize(
    ("call", "name", "shape", "message"),
    [
        (large()[0], "state", (3, 300, 2), "the state holds 2 steps, and a kernel of 4 needs at least 3"),
        (large()[0], "weight", (200, 4), r"input 2 \(weight\) is float32 \[200, 4\], and must be float32 \[300, 4\]"),
        (large()[0], "x", (3, 300), r"x has 2 axes, and must be \[B, T, C\]"),
        (large()[1], "z", (3, 8, 100), r"input 8 \(z\) is float32 \[3, 8, 100\], and must be float32 \[3, 8, 200\]"),
        (large()[1], "dt", (3, 8, 3), "heads must divide the rows"),
        (large()[3], "k", (3, 4, 3, 64), "heads of keys must divide those of v"),
        (large()[3], "state", (3, 4, 600, 160), "a head has 1 to 512 keys"),
        (large()[3], "q", (3, 4, 3, 64), r"192 channels of q: 2 heads of 64 keys must divide them"),
        (large()[3], "b", (3, 4, 3), r"input 4 \(b\) is float32 \[3, 4, 3\], and must be float32 \[3, 4, 4\]"),
        (large()[5], "qkv", (3, 8, 600), "152 channels of q: 2 heads of 64 keys must divide them"),
        (large()[5], "qkv", (3, 8, 448), "0 channels of q: 2 heads of 64 keys must divide them"),
        (large()[5], "qkv", (3, 8, 20), "channels of q: 2 heads of 64 keys must divide them"),
        (large()[5], "logits", (3, 8, 2), r"input 3 \(g\) is float32 \[3, 8, 2\], and must be float32 \[3, 8, 4\]"),
        (large()[6], "qkv", (3, 8, 600), "qkv has 600 channels: .* do not fill them"),
        (large()[6], "carry", (3, 2, 64, 160), r"input 3 \(carry\) .* must be float32 \[3, 2, 64, 161\]"),
        (large()[6], "mean", (3, 2, 600, 161), "a head has 1 to 512 keys"),
        (large()[3], "v", (3, 4, 64), r"input 2 \(v\) is float32 \[3, 4, 64\], and must be float32 \[3, 4, 640\]"),
        (large()[3], "state", (3, 4, 64), r"must be \[B, T, H K\] and \[B, H, K, V\]"),
        (large()[4], "largest", (3, 200), r"input 6 \(largest\) .* must be float32 \[3, 300\]"),
    ],
)
def test_what_does_not_fit_is_refused(call, name, shape, message):
    call.inputs[name] = np.zeros(shape, np.float32)
    with pytest.raises(Exception, match=message):
        compute(call)
