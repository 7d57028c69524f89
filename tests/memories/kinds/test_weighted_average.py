"""A weighted mean of the newest pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.memories.kind import BIAS_COUNTED, NAN, WINDOWS, Kind, Options, bad, fill_ring_of_pairs

WRONG = ([1.0], [1.0, 0.0], [1.0, -1.0], [1.0, NAN], [1.0, 1e-50], [1.0, "x"], 5, "ab", {})


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    members = range(max(0, i - spec["window"] + 1), i + 1)
    if spec.get("beta") is not None:
        beta = np.array(spec["beta"], dtype=np.float64)
    else:
        beta = np.exp(layer.parameters[f"memories.{name}.log_beta"][h])
    pair = layer.weighted({j: float(beta[i - j]) for j in members}, h)
    return layer.summary(name, spec, i, h, g, pair, len(members))


def options(kv_heads: int) -> Options:
    return WINDOWS.flatmap(
        lambda w: st.fixed_dictionaries(
            {"window": st.just(w)},
            optional={**BIAS_COUNTED, "beta": st.lists(st.floats(0.05, 20), min_size=w, max_size=w)},
        )
    )


KIND = Kind(
    options=options,
    slots=slots,
    usual={"window": 7},
    far={"bias": "log_count"},
    fill=fill_ring_of_pairs,
    bad=[*bad("window", 0, "x", beta=[1.0]), *bad("beta", *WRONG, window=2)],
)
