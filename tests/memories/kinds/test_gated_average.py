"""A mean with a learned gate."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import BIAS, Kind, bad, fill_summary, sum_and_mass


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    weight, bias = layer.parameters[f"memories.{name}.gate.weight"], layer.parameters[f"memories.{name}.gate.bias"]
    logits = [float(weight[h] @ layer.x[j] + bias[h]) for j in range(layer.start, i + 1)]
    keep = [float(oracle.sigmoid(logit)) for logit in logits]
    take = [float(oracle.sigmoid(-logit)) for logit in logits]
    return layer.summary(name, spec, i, h, g, layer.decaying(name, h, i, keep, take), 0)


KIND = Kind(
    options=lambda kv_heads: st.fixed_dictionaries({}, optional=BIAS),
    slots=slots,
    given=sum_and_mass,
    fill=fill_summary,
    bad=bad("bias", "log_count"),
)
