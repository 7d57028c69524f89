"""A mean whose weights fall geometrically."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import BIAS, NAN, Kind, Options, bad, fill_summary, sum_and_mass


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    decay = spec.get("decay")
    if decay is None:
        gamma = float(oracle.sigmoid(layer.parameters[f"memories.{name}.decay_logit"][h]))
    else:
        gamma = float(decay[h]) if isinstance(decay, list | tuple) else float(decay)
    steps = i - layer.start + 1
    pair = layer.decaying(name, h, i, [gamma] * steps, [1.0] * steps)
    return layer.summary(name, spec, i, h, g, pair, 0)


def options(kv_heads: int) -> Options:
    gamma = st.floats(0.01, 0.99)
    return st.fixed_dictionaries(
        {}, optional={**BIAS, "decay": gamma | st.lists(gamma, min_size=kv_heads, max_size=kv_heads)}
    )


KIND = Kind(
    options=options,
    slots=slots,
    given=sum_and_mass,
    fill=fill_summary,
    bad=[
        *bad("bias", "log_count"),
        *bad("decay", 0, 1, 1.5, -0.1, NAN, "x", True, [0.5], [0.5, 2.0], [0.5, None], {}),
    ],
)
