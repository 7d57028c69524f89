"""Tiny streaming graphs as others might export them, and the loops that one writes around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

_HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

LEAKY = """
leaky (float[batch, 4] x, float[batch, 4] mem) => (float[batch, 4] y, float[batch, 4] mem_out) {
    half = Constant <value = float {0.5}> ()
    kept = Mul(mem, half)
    mem_out = Add(kept, x)
    y = Tanh(mem_out)
}
"""
"""mem ← mem / 2 + x; y = tanh(mem)."""

TWINS = """
twins (float[1, T, 3] x, float[1, 3] h, float[1, 3] c) => (float[1, T, 3] y, float[1, 3] hn, float[1, 3] cn) {
    axis = Constant <value = int64[1] {1}> ()
    last = ReduceSum<keepdims = 0>(x, axis)
    fast = Constant <value = float {0.5}> ()
    slow = Constant <value = float {0.9}> ()
    h1 = Mul(h, fast)
    hn = Add(h1, last)
    c1 = Mul(c, slow)
    cn = Add(c1, last)
    two = Constant <value = float {2.0}> ()
    c2 = Mul(cn, two)
    sum = Add(hn, c2)
    wide = Unsqueeze(sum, axis)
    shape = Shape(x)
    y = Expand(wide, shape)
}
"""
"""Two states of one shape; right for calls of one step, although the file promises more."""

STEP_TWINS = TWINS.replace("[1, T, 3]", "[1, 1, 3]")

RATE = """
rate (float[batch, n] input, float[2, batch, 3] state, int64 sr)
    => (float[batch, 1] output, float[2, batch, 3] stateN) {
    high = Constant <value = int64 {16000}> ()
    is_high = Equal(sr, high)
    level = If (is_high) <
        then_branch = a () => (float[batch, 1] one) {
            axis = Constant <value = int64[1] {1}> ()
            one = ReduceMean<keepdims = 1, axes = [1]>(input)
        },
        else_branch = b () => (float[batch, 1] two) {
            two = ReduceMax<keepdims = 1, axes = [1]>(input)
        }
    >
    first = Constant <value = int64[1] {0}> ()
    wide = Unsqueeze(level, first)
    half = Constant <value = float {0.5}> ()
    kept = Mul(state, half)
    stateN = Add(kept, wide)
    sums = ReduceMean<keepdims = 0, axes = [0, 2]>(stateN)
    last = Constant <value = int64[1] {1}> ()
    output = Unsqueeze(sums, last)
}
"""
"""A detector of samples: the last ones in front, a state with the batch axis second, a rate that chooses a branch."""

SPECTRA = """
spectra (float[1, 5, 1, 2] mix, float[1, 5] mem) => (float[1, 5, 1, 2] enh, float[1, 5] mem_out) {
    half = Constant <value = float {0.5}> ()
    enh = Mul(mix, half)
    parts = ReduceMean<keepdims = 0, axes = [2, 3]>(mix)
    kept = Mul(mem, half)
    mem_out = Add(kept, parts)
}
"""
"""A gain of 1/2 on spectra of 8 samples, and a state that only adds."""

CACHE = """
cache (float[1, 2] x, float[1, past, 2] past_k) => (float[1, 2] y, float[1, total, 2] present_k) {
    axis = Constant <value = int64[1] {1}> ()
    new = Unsqueeze(x, axis)
    present_k = Concat<axis = 1>(past_k, new)
    y = ReduceSum<keepdims = 0>(present_k, axis)
}
"""

MASK = """
mask (float[1, 1, 9] mag, float[1, 9] s) => (float[1, 1, 9] m, float[1, 9] s_out) {
    half = Constant <value = float {0.5}> ()
    axis = Constant <value = int64[1] {1}> ()
    kept = Mul(s, half)
    flat = Squeeze(mag, axis)
    s_out = Add(kept, flat)
    wide = Unsqueeze(s_out, axis)
    m = Sigmoid(wide)
}
"""
"""A mask for the magnitudes of 16 samples."""

FILTER = """
filter (float[1, 1, 16] x, float[1, 16] s) => (float[1, 1, 16] y, float[1, 16] s_out) {
    half = Constant <value = float {0.5}> ()
    axis = Constant <value = int64[1] {1}> ()
    kept = Mul(s, half)
    flat = Squeeze(x, axis)
    s_out = Add(kept, flat)
    y = Unsqueeze(s_out, axis)
}
"""
"""A filter of frames of 16 samples."""


SIZE = 64
DENSE = f"""
dense (float[batch, {SIZE}] x, float[batch, {SIZE}] s) => (float[batch, {SIZE}] y, float[batch, {SIZE}] sn) {{
    half = Constant <value = float {{0.5}}> ()
    kept = Mul(s, half)
    mixed = Gemm<transB = 1>(x, w, b)
    sn = Add(kept, mixed)
    out = MatMul(sn, v)
    y = Tanh(out)
}}
"""
"""sn = s / 2 + x wᵀ + b; y = tanh(sn v)."""


def model(text: str) -> onnx.ModelProto:
    """The model in a text, without its head."""
    return onnx.parser.parse_model(_HEAD + text)


def write(path: Path, text: str) -> Path:
    """Write the model in a text to a file."""
    onnx.save(model(text), path)
    return path


def leaky_by_hand(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What LEAKY gives for ``[N, 4]``."""
    mem, rows = np.zeros(4, np.float32), []
    for row in x:
        mem = mem * np.float32(0.5) + row
        rows.append(np.tanh(mem))
    return np.stack(rows)


def write_dense(path: Path) -> Path:
    """Write DENSE with random weights to a file."""
    made, rng = model(DENSE), np.random.default_rng(0)
    for name, shape in (("w", (SIZE, SIZE)), ("v", (SIZE, SIZE)), ("b", (SIZE,))):
        value = (rng.standard_normal(shape) / 8).astype(np.float32)
        made.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    onnx.save(made, path)
    return path
