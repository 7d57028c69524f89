"""The newest pairs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import WINDOWS, Kind, bad


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    q = oracle.rotated(layer.q[i][h, g], i, layer.sizes.theta)
    return [layer.exact(j, h, q) for j in range(max(0, i - spec["window"] + 1), i + 1)]


def fill(states: dict[str, Any], name: str, spec: Any, sizes: oracle.Sizes, history: oracle.History) -> None:
    for j in range(max(0, history.start - spec["window"]), history.start):
        k, v = history.pairs[j]
        states[f"{name}.k"][0, :, j % spec["window"]] = oracle.rotated(k, j, sizes.theta)
        states[f"{name}.v"][0, :, j % spec["window"]] = v


KIND = Kind(
    options=lambda kv_heads: st.fixed_dictionaries({"window": WINDOWS}),
    slots=slots,
    usual={"window": 5},
    fill=fill,
    bad=[({}, "window"), *bad("window", 0, -1, 2.5, "4", None, True), *bad("size", 4, window=4)],
)
