"""The growing KV cache."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import Kind, bad


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    q = oracle.rotated(layer.q[i][h, g], i, layer.sizes.theta)
    return [layer.exact(j, h, q) for j in range(i + 1)]


KIND = Kind(options=lambda kv_heads: st.just({}), slots=slots, fixed=False, bad=bad("window", 2))
