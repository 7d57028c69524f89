"""The mean of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.memories.kind import BIAS_COUNTED, Kind, bad, fill_summary


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    """``Mem_i = ((k_i, v_i) + i Mem_{i-1}) / (i + 1)``, literally."""
    size = layer.sizes.head_dim
    given = layer.history.given.get(name, {}).get("mean")
    memory = np.zeros(2 * size) if given is None else given[h]
    for j in range(layer.start, i + 1):
        memory = (np.concatenate([layer.pairs[j][0][h], layer.pairs[j][1][h]]) + j * memory) / (j + 1)
    return layer.summary(name, spec, i, h, g, (memory[:size], memory[size:]), i + 1)


KIND = Kind(
    options=lambda kv_heads: st.fixed_dictionaries({}, optional=BIAS_COUNTED),
    slots=slots,
    far={"bias": "log_count"},
    given=lambda draw, heads, size: {"mean": draw(heads, 2 * size)},
    fill=fill_summary,
    bad=bad("bias", ["learned"]),
)
