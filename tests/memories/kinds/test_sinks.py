"""The first pairs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import Kind, bad


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    n = spec.get("slots", 4)
    place = min(i, n + layer.window - 1 if layer.window else n)
    q = oracle.rotated(layer.q[i][h, g], place, layer.sizes.theta)
    return [layer.exact(s, h, q) for s in range(n) if s <= i - layer.window]


def fill(states: dict[str, Any], name: str, spec: Any, sizes: oracle.Sizes, history: oracle.History) -> None:
    for s in range(min(spec.get("slots", 4), history.start)):
        states[f"{name}.k"][0, :, s] = oracle.rotated(history.pairs[s][0], s, sizes.theta)
        states[f"{name}.v"][0, :, s] = history.pairs[s][1]


KIND = Kind(
    options=lambda kv_heads: st.fixed_dictionaries({}, optional={"slots": st.integers(1, 5)}),
    slots=slots,
    fill=fill,
    bad=bad("slots", 0, 1.0, "4", None),
)
