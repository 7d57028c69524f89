"""The mean of the newest pairs."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.memories.kind import BIAS_COUNTED, WINDOWS, Kind, bad, fill_ring_of_pairs


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    members = range(max(0, i - spec["window"] + 1), i + 1)
    pair = layer.weighted(dict.fromkeys(members, 1.0), h)
    return layer.summary(name, spec, i, h, g, pair, len(members))


KIND = Kind(
    options=lambda kv_heads: st.fixed_dictionaries({"window": WINDOWS}, optional=BIAS_COUNTED),
    slots=slots,
    usual={"window": 7},
    far={"bias": "log_count"},
    fill=fill_ring_of_pairs,
    bad=[*bad("window", 0, "3", None), *bad("bias", "sum", None, window=3)],
)
