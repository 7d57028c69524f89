"""Blocks of pairs that left the window, each one pair."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.kind import Kind, bad, side_by_side


def slots(layer: Any, name: str, spec: Any, i: int, h: int, g: int) -> list[Any]:
    m, c = spec.get("slots", 16), spec.get("rate", 4)
    some = range(max(0, i // c - m - layer.window // c - 2), i // c + 1)  # no older block can be among the last m
    complete = [b for b in some if (b + 1) * c - 1 <= i - layer.window]
    found = []
    for b in complete[-m:]:
        members = [layer.pairs[j] for j in range(b * c, (b + 1) * c)]
        if spec.get("pooling") == "convolution":
            kernel = layer.parameters[f"memories.{name}.kernel"]
            kernel = kernel.reshape(2, layer.sizes.kv_heads, c, *[layer.sizes.head_dim] * 2)
            k, v = (sum(pair[part][h] @ kernel[part, h, r] for r, pair in enumerate(members)) for part in (0, 1))
        else:
            k, v = (sum(pair[part][h] for pair in members) / c for part in (0, 1))
        found.append((layer.score(layer.q[i][h, g], k), v))
    return found


def fill(states: dict[str, Any], name: str, spec: Any, sizes: oracle.Sizes, history: oracle.History) -> None:
    """Blocks by their number modulo the queue's length, and the sum of the block that is filling."""
    queue, rate = states[f"{name}.slots"], spec.get("rate", 4)
    filling = history.start // rate
    for b in range(max(0, filling - queue.shape[2]), filling):
        members = [side_by_side(history.pairs[j]) for j in range(b * rate, (b + 1) * rate)]
        queue[0, :, b % queue.shape[2]] = np.mean(members, axis=0)
    for j in range(filling * rate, history.start):
        states[f"{name}.partial"][0, :, 0] += side_by_side(history.pairs[j])


KIND = Kind(
    options=lambda kv_heads: st.fixed_dictionaries(
        {"slots": st.integers(1, 4)},
        optional={"rate": st.integers(2, 5), "pooling": st.sampled_from(["mean", "convolution"])},
    ),
    slots=slots,
    fill=fill,
    bad=[*bad("slots", 0, 1.5), *bad("rate", 0, 1, "4"), *bad("pooling", "max")],
)
