"""Linear attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.memories.kind import Array, Draw, Kind, bad, fill_matrix


def phi(x: Array) -> Array:
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


def matrix(layer: Any, name: str, i: int, h: int, g: int) -> Array:
    """``φ(q/√D) Σ_j φ(k_j)ᵀ v_j / (φ(q/√D) · Σ_j φ(k_j))``, ``φ(x) = elu(x) + 1``."""
    size = layer.sizes.head_dim
    total, norm = np.zeros((size, size)), np.zeros(size)
    given = layer.history.given.get(name)
    if given is not None:
        total, norm = layer.start * given["mean"][h][:, :size], layer.start * given["mean"][h][:, size]
    for j in range(layer.start, i + 1):
        k, v = layer.pairs[j]
        total = total + np.outer(phi(k[h]), v[h])
        norm = norm + phi(k[h])
    q = phi(layer.q[i][h, g] / np.sqrt(size))
    read: Array = (q @ total) / (q @ norm)
    return read


def given(draw: Draw, heads: int, size: int) -> dict[str, Array]:
    return {"mean": np.concatenate([draw(heads, size, size), np.abs(draw(heads, size, 1)) + 1], axis=-1)}


KIND = Kind(
    options=lambda kv_heads: st.just({}),
    matrix=matrix,
    given=given,
    fill=fill_matrix,
    bad=bad("bias", "learned"),
)
