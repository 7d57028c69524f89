"""Drawn calls of ``edgemem::MemoryAttention``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from tests.memories.oracle import TURN
from tests.runtimes.native.oracle import Array, Call

LISTS = (
    ["window"],
    ["window", "sinks"],
    ["window", "cumulative"],
    ["window", "geometric", "cumulative:log_count"],
    ["window", "sinks", "cumulative", "geometric", "geometric"],
    ["window", "gated_average", "moving_average"],
    ["window", "weighted_average:log_count", "moving_average:log_count", "compressed:3:2"],
    ["window", "compressed:2:5", "sinks", "gated_average"],
    ["window", "exact", "cumulative"],
    ["exact"],
    ["compressed:2:3"],
    ["sinks", "exact", "geometric"],
)
FAR = (0, 1, 2, 5, 7, 8, 9, 30, 1000, 2**31 - 3, 2**40 + 1, 2**53 + 1, 2**62 - 600)


def rotary_phases(width: int, theta: float = 10000.0) -> Array:
    """Parts of a turn that each pair turns from one position to the next, int64 ``[D/2]``."""
    return np.array([round(theta ** (-2 * f / width) / (2 * math.pi) * TURN) for f in range(width // 2)])


def entries(name: str, values: Array, kind: type) -> dict[str, Array]:
    """A ring of numbers of a kind, ``[..., D]``; of integers also a scale for each slot."""
    if kind is not np.int8:
        return {name: values.astype(kind)}
    scales = (np.abs(values[..., :1]) + 0.1) / 60
    return {name: (values * 60).clip(-127, 127).astype(np.int8), f"{name}_scale": scales.astype(np.float32)}


def make_call(
    memories: list[str],
    *,
    position: list[int],
    time: int = 1,
    kv_heads: int = 1,
    groups: int = 1,
    width: int = 8,
    window: int = 8,
    sinks: int = 3,
    ring: type = np.float32,
    seed: int = 0,
    halves: bool = False,
    **options: Any,
) -> Call:
    """A call of normal numbers, each stream at its own position; ``halves``: k and v are float16 numbers."""
    random = np.random.default_rng(seed)
    window = window if "window" in memories else 0
    batch, heads = len(position), kv_heads * groups

    def draw(*shape: int) -> Array:
        values = random.normal(size=shape).astype(np.float32)
        return values.astype(np.float16).astype(np.float32) if halves else values

    states: dict[str, Array] = {}
    parameters: dict[int, Array] = {}
    for m, memory in enumerate(memories):
        if memory in ("window", "sinks"):
            slots = window if memory == "window" else sinks
            kind = np.float32 if ring is np.int8 and memory == "sinks" else ring
            for tensor in ("k", "v"):
                states |= entries(f"{m}.{tensor}", draw(batch, kv_heads, slots, width), kind)
        elif memory.startswith("compressed"):
            shown, rate = map(int, memory.split(":")[1:])
            states[f"{m}.slots"] = draw(batch, 2 * kv_heads, shown + -(-window // rate) + 1, width)
            states[f"{m}.partial"] = draw(batch, 2 * kv_heads, 1, width)
        elif memory == "exact":
            states[f"{m}.slots"] = draw(batch, 2 * kv_heads, sinks + 2, width)
            states[f"{m}.surprise"] = draw(batch, kv_heads, sinks + 2, 1) * np.float32(width**0.5)  # below 0: no pair
            parameters[m] = draw(batch, time, kv_heads * width)
        elif memory.startswith("cumulative"):
            states[f"{m}.mean"] = draw(batch, 2 * kv_heads, 1, width)
            states[f"{m}.carry"] = draw(batch, 2 * kv_heads, 1, width) * np.float32(1e-8)
        elif memory.startswith(("moving", "weighted")):
            slots = 5 + window % 7
            states |= entries(f"{m}.pairs", draw(batch, 2 * kv_heads, slots, width), ring)
            if memory.startswith("weighted"):
                parameters[m] = draw(1 if seed % 2 else kv_heads, slots) * 2
        else:
            states[f"{m}.sum"] = draw(batch, 2 * kv_heads, 1, width) * 5
            states[f"{m}.mass"] = np.abs(draw(batch, kv_heads, 1, 1)) * 5
            decays = np.log(random.uniform(0.5, 0.999, kv_heads)).astype(np.float32)
            parameters[m] = decays if memory == "geometric" else draw(batch, time, kv_heads) * 3
    summaries = sum(not memory.startswith(("window", "sinks", "compressed", "exact")) for memory in memories)
    given: dict[str, Any] = {"phases": rotary_phases(width), "bias": draw(summaries, heads) if summaries else None}
    return Call(
        memories,
        draw(batch, heads, time, width) * 2,
        draw(batch, kv_heads, time, width),
        draw(batch, kv_heads, time, width),
        np.array(position),
        window,
        width**-0.5,
        states,
        parameters=parameters,
        **{**given, **options},
    )


@st.composite
def rotations(draw: st.DrawFn, width: int) -> dict[str, Any]:
    """Which pairs of a head are rotated, and how queries and keys come to the operator."""
    given = draw(st.sampled_from(["plain", "rotated", "tables"]))
    pairs = draw(st.integers(1, width // 2))
    signs = draw(st.sampled_from([1, -1]))
    rotation = {"given": given, "phases": signs * rotary_phases(2 * pairs), "by_slot": draw(st.booleans())}
    if given != "tables":
        rotation |= {"neighbours": draw(st.booleans()), "rotary_start": draw(st.integers(0, width - 2 * pairs))}
    return rotation


@st.composite
def calls(draw: st.DrawFn, ring: type = np.float32, **given: Any) -> Call:
    """Lists, sizes, wraps, batches, groups and lengths; widths that fill vectors and widths that do not."""
    heads = draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 3, 5]))
    options: dict[str, Any] = dict(given)
    width = draw(st.sampled_from([2, 4, 6, 8, 12, 16, 20, 32, 40, 64, 128]))
    if "phases" not in given:
        options |= draw(rotations(width))
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 30.0]))
    if draw(st.booleans()):
        options["sink_logits"] = np.linspace(-3, 3, heads[0] * heads[1], dtype=np.float32)
    return make_call(
        draw(st.sampled_from(LISTS)),
        position=draw(st.lists(st.sampled_from(FAR), min_size=1, max_size=3)),
        time=draw(st.sampled_from([1, 1, 2, 3, 8, 17])),
        kv_heads=heads[0],
        groups=heads[1],
        width=width,
        window=draw(st.sampled_from([1, 2, 7, 8, 40, 300])),
        sinks=draw(st.integers(1, 4)),
        ring=ring,
        seed=draw(st.integers(0, 1000)),
        **options,
    )
