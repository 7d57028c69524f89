"""The pairs that surprised the delta rule most."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import Kind, bad, side_by_side
from tests.memories.kinds.test_gated_delta import unit

FAR = 3
"""Slots where the tests start a stream far away."""


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    """A pair with ``s_j = ‖β_j (v_j - a_j S_{j-1}ᵀ k_j)‖`` takes the slot of the least ``s`` where that is smaller."""
    size, kv_heads = layer.sizes.head_dim, layer.sizes.kv_heads
    gates = "memories.gated_delta.gates"
    weight, bias = layer.parameters[f"{gates}.weight"], layer.parameters[f"{gates}.bias"]
    state = np.zeros((size, size))
    kept: list[list[Any]] = [[-1.0, None, None] for _ in range(spec.get("slots", 16))]
    if layer.history.given:
        state = layer.history.given["gated_delta"]["matrix"][h]
        given = layer.history.given[name]
        kept = [[given["surprise"][h, s, 0], given["k"][h, s], given["v"][h, s]] for s in range(len(kept))]
    for j in range(layer.start, i + 1):
        a = oracle.sigmoid(weight[h] @ layer.x[j] + bias[h])
        beta = oracle.sigmoid(weight[kv_heads + h] @ layer.x[j] + bias[kv_heads + h])
        k, v = layer.pairs[j][0][h], layer.pairs[j][1][h]
        written = beta * (v - a * state.T @ unit(k))
        state = a * state + np.outer(unit(k), written)
        least = min(kept, key=lambda slot: slot[0])
        if np.linalg.norm(written) > least[0]:
            least[:] = [np.linalg.norm(written), k, v]
    return [(layer.score(layer.q[i][h, g], k), v) for s, k, v in kept if s >= 0]


def given(draw: Any, heads: int, size: int) -> dict[str, Any]:
    surprise = np.abs(draw(heads, FAR, 1))
    surprise[:, 0] = 0.01  # is replaced
    return {"k": draw(heads, FAR, size), "v": draw(heads, FAR, size), "surprise": surprise}


def fill(states: dict[str, Any], name: str, spec: Any, sizes: oracle.Sizes, history: oracle.History) -> None:
    past = history.given.get(name)
    if past is not None:
        states[f"{name}.slots"][0] = side_by_side((past["k"], past["v"]))
        states[f"{name}.surprise"][0] = past["surprise"]


KIND = Kind(
    options=lambda kv_heads: st.fixed_dictionaries({"slots": st.integers(1, 5)}),
    slots=slots,
    usual={"slots": FAR},
    given=given,
    fill=fill,
    beside="gated_delta",
    bad=bad("slots", 0, 1.5),
)
