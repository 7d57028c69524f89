"""The gated delta rule."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import Array, Kind, bad, fill_matrix


def unit(x: Array) -> Array:
    return x / np.sqrt(x @ x + 1e-6)


def matrix(layer: Any, name: str, i: int, h: int, g: int) -> Array:
    """``S_i = a_i (I - β_i k_i k_iᵀ) S_{i-1} + β_i k_i v_iᵀ``, read as ``S_iᵀ q_i``."""
    size, kv_heads = layer.sizes.head_dim, layer.sizes.kv_heads
    weight, bias = layer.parameters[f"memories.{name}.gates.weight"], layer.parameters[f"memories.{name}.gates.bias"]
    given = layer.history.given.get(name)
    state = np.zeros((size, size)) if given is None else given["matrix"][h]
    for j in range(layer.start, i + 1):
        a = oracle.sigmoid(weight[h] @ layer.x[j] + bias[h])
        beta = oracle.sigmoid(weight[kv_heads + h] @ layer.x[j] + bias[kv_heads + h])
        k, v = unit(layer.pairs[j][0][h]), layer.pairs[j][1][h]
        state = a * (np.eye(size) - beta * np.outer(k, k)) @ state + beta * np.outer(k, v)
    read: Array = state.T @ unit(layer.q[i][h, g] / np.sqrt(size))
    return read


KIND = Kind(
    options=lambda kv_heads: st.just({}),
    matrix=matrix,
    given=lambda draw, heads, size: {"matrix": draw(heads, size, size)},
    fill=fill_matrix,
    bad=bad("heads", 2),
)
