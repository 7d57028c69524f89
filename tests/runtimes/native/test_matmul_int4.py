"""Products with matrices of 4-bit integers, by ``edgemem::MatMul``, ``NormMatMul`` and ``GatedMlp``."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtimes.native.operators import run, session
from tests.runtimes.native.test_layers import EPS, normed

OUT = {"out": np.float32}


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def matrix(seed, depth, columns, block):
    """Integers ``[K, N]`` and their scales ``[K / block, N]``."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(-8, 8, (depth, columns)).astype(np.int8)
    return numbers, rng.uniform(0.5, 1.5, (depth // block, columns)).astype(np.float32)


def widened(numbers, scale):
    return numbers * np.repeat(scale.astype(np.float64), len(numbers) // len(scale), axis=0)


def product(x, numbers, scale, add=None, *, threads=1, exact=False):
    inputs = {"x": x, "w": numbers, "add": add, "scale": scale}
    made = session("MatMul", inputs, OUT, threads, ("w",), exact, transposed=0)
    return run(made, {**inputs, "w": None})["out"]


def rounding_bound(x, w, block):
    """How far a product may be off where every part of 32 numbers of ``x``, or of a block of 16, is rounded to 255
    steps between its largest number and the negative of it: half a step for each number."""
    part = min(block, 32)
    step = np.abs(x.reshape(len(x), x.shape[1] // part, part)).max(axis=-1, keepdims=True) / 127
    return np.broadcast_to(step / 2, (*step.shape[:-1], part)).reshape(x.shape) @ np.abs(w)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([(16, 1), (16, 3), (32, 1), (32, 5), (64, 2), (128, 1), (128, 3)]),
    st.sampled_from([2, 30, 32, 64, 126, 128, 130, 258, 700]),
    st.sampled_from([0, 1, 2, 6, 16, 17, 40]),
    st.sampled_from(["", "row", "all"]),
    st.booleans(),
    st.integers(0, 99),
)
def test_it_is_the_product_but_for_the_rounding_of_x(blocks, columns, rows, add, exact, seed):
    block, count = blocks
    x, (numbers, scale) = drawn(seed, rows, block * count), matrix(seed + 1, block * count, columns, block)
    w = widened(numbers, scale)
    want = x.astype(np.float64) @ w
    added = drawn(seed + 2, *((columns,) if add == "row" else want.shape)) if add else None
    got = product(x, numbers, scale, added, exact=exact)
    allowed = 1e-4 + (0 if exact else 1.001 * rounding_bound(x, w, block))
    assert (np.abs(got - want - (0 if added is None else added)) <= allowed).all()


def test_numbers_that_are_steps_of_x_lose_nothing():
    """Integers up to 127 are their own rounding: the sums are exact, and only the scales round."""
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (3, 96)).astype(np.float32)
    x[:, ::32] = 127
    numbers, scale = matrix(1, 96, 260, 32)
    want = x.astype(np.float64) @ widened(numbers, scale)
    np.testing.assert_allclose(product(x, numbers, scale), want, rtol=2e-6, atol=2e-3)


@pytest.mark.parametrize("extreme", [-8, 7])
def test_the_largest_sums_of_a_block_fit(extreme):
    x, numbers = np.full((1, 128), 127, np.float32), np.full((128, 128), extreme, np.int8)
    scale = np.ones((1, 128), np.float32)
    np.testing.assert_allclose(product(x, numbers, scale), np.full((1, 128), 128 * 127 * extreme), rtol=1e-6)


def test_a_row_is_bit_equal_to_the_row_alone_with_any_number_of_threads():
    x, (numbers, scale) = drawn(0, 40, 320), matrix(1, 320, 1322, 32)
    for exact in (False, True):
        together = product(x, numbers, scale, threads=2, exact=exact)
        np.testing.assert_array_equal(product(x, numbers, scale, threads=5, exact=exact), together)
        for rows in (slice(0, 1), slice(3, 5), slice(39, 40), slice(5, 35)):
            np.testing.assert_array_equal(product(x[rows], numbers, scale, exact=exact), together[rows])


def test_a_row_of_zeros_is_zero_and_what_is_not_finite_stays_so():
    x, (numbers, scale) = drawn(0, 4, 64), matrix(1, 64, 200, 32)
    x[0], x[1, 40], x[2, 3] = 0, np.nan, np.inf
    got = product(x, numbers, scale)
    assert (got[0] == 0).all()
    assert not np.isfinite(got[1:3]).any()
    np.testing.assert_array_equal(got[3:], product(x[3:], numbers, scale))


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2", "neon"])
def test_every_instruction_set_computes_the_same_sums(level, monkeypatch):
    from edgemem.runtimes import native

    x, (numbers, scale) = drawn(0, 5, 320), matrix(1, 320, 1030, 32)
    want = product(x, numbers, scale)
    monkeypatch.setenv("EDGEMEM_NATIVE_LEVEL", level)
    if not native.look(native.library()).level:
        pytest.skip(f"this processor has no {level}")
    np.testing.assert_allclose(product(x, numbers, scale), want, atol=1e-4)


def test_the_operators_of_a_layer_take_such_matrices():
    x, norm = drawn(0, 1, 3, 64), drawn(1, 64)
    up, down = matrix(2, 64, 2 * 96, 32), matrix(3, 96, 64, 32)
    inputs = {"x": x, "norm": norm, "gate_up": up[0], "down": down[0], "up_scale": up[1] / 50, "down_scale": down[1]}
    made = session(
        "GatedMlp", inputs, {**OUT, "up": np.float32, "gated": np.float32}, 1, ("gate_up", "down"), True,
        gate_up_transposed=0, down_transposed=0, eps=EPS,
    )  # fmt: skip
    gate, value = np.split(normed(x, norm) @ widened(up[0], up[1] / 50), 2, axis=-1)
    want = x + gate / (1 + np.exp(-gate)) * value @ widened(*down)
    got = run(made, {**inputs, "gate_up": None, "down": None})["out"]
    np.testing.assert_allclose(got, want, atol=2e-4, rtol=1e-5)

    inputs = {"x": x, "norm": norm, "w": up[0], "add": None, "scale": up[1]}
    outputs = {**OUT, "between": np.float32}
    made = session("NormMatMul", inputs, outputs, 1, ("w",), True, transposed=0, eps=EPS)
    want = normed(x, norm) @ widened(*up)
    np.testing.assert_allclose(run(made, {**inputs, "w": None})["out"], want, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("depth", "columns", "scales", "transposed", "message"),
    [
        (64, 128, (2, 127), 0, r"\(scale\) is float32 \[2, 127\], and must be float32 \[2, 128\]"),
        (64, 128, (3, 128), 0, "64 rows in 3 blocks"),
        (48, 128, (1, 128), 0, "a block has 16 rows or a multiple of 32"),
        (64, 129, (2, 129), 0, "the columns are even"),
        (64, 128, (2, 128), 1, r"\(w\) "),
        (32, 128, (1, 128), 0, r"\(w\) is int4 \[32, 128\], and must be int4 \[64, 128\]"),
    ],
)
def test_what_does_not_fit_is_refused(depth, columns, scales, transposed, message):
    x = np.zeros((1, 48 if depth == 48 else 64), np.float32)
    inputs = {"x": x, "w": np.zeros((depth, columns), np.int8), "add": None, "scale": np.ones(scales, np.float32)}
    with pytest.raises(Exception, match=message):
        run(session("MatMul", inputs, OUT, 1, ("w",), transposed=transposed), {**inputs, "w": None})
