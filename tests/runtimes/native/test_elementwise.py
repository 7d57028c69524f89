"""``edgemem::SwiGLU`` and ``edgemem::RMSNorm``."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtimes.native.operators import run, session

WIDTHS = st.sampled_from([1, 3, 4, 8, 16, 17, 64, 100, 512])


def drawn(seed, *shape):
    return (np.random.default_rng(seed).normal(size=shape) * 4).astype(np.float32)


@settings(deadline=None, max_examples=20)
@given(WIDTHS, st.integers(0, 3), st.integers(0, 99), st.booleans())
def test_swiglu(width, rows, seed, joined):
    gate, up = drawn(seed, 2, rows, width), drawn(seed + 1, 2, rows, width)
    inputs = {"gate": np.concatenate([gate, up], axis=-1)} if joined else {"gate": gate, "up": up}
    out = run(session("SwiGLU", inputs, {"out": np.float32}), inputs)["out"]
    wide = gate.astype(np.float64)
    np.testing.assert_allclose(out, wide / (1 + np.exp(-wide)) * up, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("gate", [-200.0, -88.0, -20.0, 0.0, 20.0, 200.0, np.inf, np.nan])
def test_swiglu_of_extreme_gates(gate):
    inputs = {"gate": np.array([[gate]], np.float32), "up": np.ones((1, 1), np.float32)}
    (out,) = run(session("SwiGLU", inputs, {"out": np.float32}), inputs).values()
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(out[0, 0], gate / (1 + np.exp(-np.float64(gate))), atol=1e-30, rtol=1e-6)


@settings(deadline=None, max_examples=20)
@given(WIDTHS, st.integers(0, 3), st.integers(0, 99), st.booleans(), st.booleans())
def test_rms_norm(width, rows, seed, residual, want_sum):
    x, weight, delta = drawn(seed, 2, rows, width), drawn(seed + 1, width), drawn(seed + 2, 2, rows, width)
    inputs = {"x": x, "weight": weight} | ({"delta": delta} if residual else {})
    outputs = {"out": np.float32} | ({"sum": np.float32} if want_sum else {})
    got = run(session("RMSNorm", inputs, outputs, eps=1e-5), inputs)
    total = x + delta if residual else x
    wide = total.astype(np.float64)
    want = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(got["out"], want, rtol=3e-6, atol=1e-6)
    if want_sum:
        np.testing.assert_array_equal(got["sum"], total)
