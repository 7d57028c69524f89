"""``edgemem::MatMul``: rows times a matrix that is read as it lies."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtimes.native.operators import run, session

SIZES = st.sampled_from([0, 1, 3, 7, 8, 15, 16, 17, 40, 64, 130])


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def product(inputs, transposed, threads=1):
    made = session("MatMul", inputs, {"out": np.float32}, threads, transposed=int(transposed))
    return run(made, inputs)["out"]


@settings(deadline=None, max_examples=60)
@given(
    SIZES,
    SIZES,
    st.sampled_from([0, 1, 2, 3, 6, 13, 27]),
    st.booleans(),
    st.sampled_from(["", "row", "all"]),
    st.integers(0, 99),
)
def test_it_is_the_product(depth, columns, rows, transposed, add, seed):
    x, w = drawn(seed, 1, rows, depth), drawn(seed + 1, depth, columns)
    inputs = {"x": x, "w": np.ascontiguousarray(w.T) if transposed else w}
    want = x.astype(np.float64) @ w
    if add:
        inputs["add"] = drawn(seed + 2, *((columns,) if add == "row" else want.shape))
        want = want + inputs["add"]
    np.testing.assert_allclose(product(inputs, transposed), want, atol=3e-6 * max(1, depth) ** 0.5, rtol=3e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_row_is_bit_equal_to_the_row_alone_with_any_number_of_threads(transposed):
    depth, columns = 300, 1300
    x, w = drawn(0, 30, depth), drawn(1, *((columns, depth) if transposed else (depth, columns)))
    together = product({"x": x, "w": w}, transposed, threads=2)
    for rows in (slice(0, 1), slice(3, 5), slice(29, 30), slice(5, 25)):
        np.testing.assert_array_equal(product({"x": x[rows], "w": w}, transposed), together[rows])


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2", "neon"])
def test_every_instruction_set(level, monkeypatch):
    from edgemem.runtimes import native

    monkeypatch.setenv("EDGEMEM_NATIVE_LEVEL", level)
    if not native.look(native.library()).level:
        pytest.skip(f"this processor has no {level}")
    w = drawn(1, 300, 1030)
    for rows, transposed in ((5, False), (23, False), (5, True)):
        x = drawn(0, rows, 300)
        inputs = {"x": x, "w": np.ascontiguousarray(w.T) if transposed else w}
        np.testing.assert_allclose(product(inputs, transposed), x.astype(np.float64) @ w, atol=5e-5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"x": drawn(0, 2, 4), "w": drawn(0, 5, 3)},
            r"input 1 \(w\) is float32 \[5, 3\], and must be float32 \[4, 3\]",
        ),
        ({"x": drawn(0, 2, 4), "w": drawn(0, 4)}, r"input 1 \(w\)"),
        ({"x": drawn(0), "w": drawn(0, 4, 4)}, "scalar"),
        (
            {"x": drawn(0, 2, 4), "w": drawn(0, 4, 3), "add": drawn(0, 4)},
            r"\(add\) is float32 \[4\], and must be .*\[3\]",
        ),
        ({"x": drawn(0, 2, 4), "w": drawn(0, 4, 3), "add": drawn(0, 1, 3)}, r"\(add\) .* must be float32 \[2, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(inputs, message):
    with pytest.raises(Exception, match=message):
        product(inputs, False)
