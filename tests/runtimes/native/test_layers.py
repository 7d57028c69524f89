"""``edgemem::NormMatMul`` and ``edgemem::GatedMlp``: several stages of a layer as one node."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtimes.native.operators import run, session

WIDTHS = st.sampled_from([1, 3, 8, 16, 17, 40, 130])
ROWS = st.sampled_from([0, 1, 2, 13, 27])
EPS = 1e-5


def drawn(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def normed(x, weight):
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + EPS) * weight


def lying(w, transposed):
    return np.ascontiguousarray(w.T) if transposed else w


def norm_matmul(inputs, transposed=False, threads=1):
    outputs = {"out": np.float32, "between": np.float32}
    return run(session("NormMatMul", inputs, outputs, threads, transposed=int(transposed), eps=EPS), inputs)["out"]


def gated_mlp(inputs, up_transposed=False, down_transposed=False, threads=1):
    attributes = {"gate_up_transposed": int(up_transposed), "down_transposed": int(down_transposed), "eps": EPS}
    outputs = {"out": np.float32, "up": np.float32, "gated": np.float32}
    return run(session("GatedMlp", inputs, outputs, threads, **attributes), inputs)["out"]


def mlp_inputs(seed, rows, width, hidden):
    return {
        "x": drawn(seed, 1, rows, width),
        "norm": drawn(seed + 1, width),
        "gate_up": drawn(seed + 2, width, 2 * hidden) / max(1, width) ** 0.5,
        "down": drawn(seed + 3, hidden, width) / max(1, hidden) ** 0.5,
    }


@settings(deadline=None, max_examples=40)
@given(WIDTHS, WIDTHS, ROWS, st.booleans(), st.sampled_from(["", "row", "all"]), st.integers(0, 99))
def test_the_product_of_a_norm(depth, columns, rows, transposed, add, seed):
    x, weight, w = drawn(seed, 1, rows, depth), drawn(seed + 1, depth), drawn(seed + 2, depth, columns)
    want = normed(x, weight) @ w
    inputs = {"x": x, "norm": weight, "w": lying(w, transposed)}
    if add:
        inputs["add"] = drawn(seed + 3, *((columns,) if add == "row" else want.shape))
        want = want + inputs["add"]
    np.testing.assert_allclose(norm_matmul(inputs, transposed), want, atol=4e-6 * depth**0.5, rtol=4e-6)


@settings(deadline=None, max_examples=40)
@given(WIDTHS, WIDTHS, ROWS, st.booleans(), st.booleans(), st.integers(0, 99))
def test_a_gated_mlp_with_its_residual(width, hidden, rows, up_transposed, down_transposed, seed):
    inputs = mlp_inputs(seed, rows, width, hidden)
    gate, up = np.split(normed(inputs["x"], inputs["norm"]) @ inputs["gate_up"], 2, axis=-1)
    want = inputs["x"] + gate / (1 + np.exp(-gate)) * up @ inputs["down"]
    inputs["gate_up"] = lying(inputs["gate_up"], up_transposed)
    inputs["down"] = lying(inputs["down"], down_transposed)
    np.testing.assert_allclose(gated_mlp(inputs, up_transposed, down_transposed), want, atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_is_bit_equal_to_the_row_alone_with_any_number_of_threads(threads):
    inputs = mlp_inputs(0, 30, 300, 700)
    product = {"x": inputs["x"], "norm": inputs["norm"], "w": inputs["gate_up"]}
    for compute, given_ in ((gated_mlp, inputs), (norm_matmul, product)):
        together = compute(given_, threads=threads)
        for rows in (slice(0, 1), slice(3, 5), slice(5, 25)):
            alone = compute({**given_, "x": given_["x"][:, rows]})
            np.testing.assert_array_equal(alone, together[:, rows])


def zeros(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("compute", "inputs", "message"),
    [
        (norm_matmul, {"x": zeros(2, 4), "norm": zeros(3), "w": zeros(4, 5)}, r"\(norm\) .* must be float32 \[4\]"),
        (norm_matmul, {"x": zeros(2, 4), "norm": zeros(4), "w": zeros(3, 5)}, r"\(w\) .* must be float32 \[4, 5\]"),
        (norm_matmul, {"x": zeros(), "norm": zeros(1), "w": zeros(1, 1)}, "scalar"),
        (
            norm_matmul,
            {"x": zeros(2, 4), "norm": zeros(4), "w": zeros(4, 5), "add": zeros(4)},
            r"\(add\) .* must be float32 \[5\]",
        ),
        (
            gated_mlp,
            {"x": zeros(2, 4), "norm": zeros(4), "gate_up": zeros(4, 5), "down": zeros(2, 4)},
            "5 columns, and must hold gate and up",
        ),
        (
            gated_mlp,
            {"x": zeros(2, 4), "norm": zeros(4), "gate_up": zeros(4, 6), "down": zeros(2, 4)},
            r"\(down\) is float32 \[2, 4\], and must be float32 \[3, 4\]",
        ),
        (
            gated_mlp,
            {"x": zeros(2, 4), "norm": zeros(4), "gate_up": zeros(4, 6), "down": zeros(3, 5)},
            r"\(down\) has 5 columns, and must have 4",
        ),
    ],
)
def test_what_does_not_fit_is_refused(compute, inputs, message):
    with pytest.raises(Exception, match=message):
        compute(inputs)


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2", "neon"])
def test_every_instruction_set(level, monkeypatch):
    from edgemem.runtimes import native

    monkeypatch.setenv("EDGEMEM_NATIVE_LEVEL", level)
    if not native.look(native.library()).level:
        pytest.skip(f"this processor has no {level}")
    inputs = mlp_inputs(0, 5, 70, 33)
    gate, up = np.split(normed(inputs["x"], inputs["norm"]) @ inputs["gate_up"], 2, axis=-1)
    want = inputs["x"] + gate / (1 + np.exp(-gate)) * up @ inputs["down"]
    np.testing.assert_allclose(gated_mlp(inputs), want, atol=3e-5)
