"""What ``edgemem::MemoryAttention`` computes, in float64, one query at a time, from the formulas of docs/memories.md.

Symbols: ``i`` position of a query, ``t`` its step in the call, ``h`` key/value head, ``g`` one of its query heads,
``W`` window, ``n`` sinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.memories.oracle import TURN

Array = np.ndarray[Any, Any]


@dataclass
class Call:
    """Inputs of one call, un-rotated and heads first: q ``[B, Hq, T, D]``, k ``[B, H, T, D]``, v ``[B, H, T, Dv]``.

    States are those of the operator, by ``<index>.<tensor>`` of the memory in the list.
    """

    memories: list[str]
    q: Array
    k: Array
    v: Array
    position: Array
    window: int
    scale: float
    states: dict[str, Array]
    phases: Array | None = None
    softcap: float = 0.0
    sink_logits: Array | None = None
    bias: Array | None = None
    log_decay: dict[int, Array] = field(default_factory=dict)


def rotated(x: Array, position: int, phases: Array | None) -> Array:
    """``x`` [..., D] with every pair ``(x[f], x[f + D/2])`` turned by ``position * phases[f]`` parts of a turn."""
    x = x.astype(np.float64)
    if phases is None:
        return x
    parts = [int(position) * int(phase) % TURN for phase in phases]
    angle = 2 * np.pi * np.array([part - TURN if part >= TURN // 2 else part for part in parts]) / TURN
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), low * np.sin(angle) + high * np.cos(angle)], axis=-1
    )


def stored(x: Array, kind: np.dtype[Any]) -> tuple[Array, float]:
    """``x`` [D] as elements of a ring, and what they are multiplied with when they are read."""
    if kind != np.int8:
        return x.astype(kind), 1.0
    scale = np.float32(np.abs(x.astype(np.float32)).max() / np.float32(127))
    return np.rint(x.astype(np.float32) / (scale or np.float32(1))).astype(np.int8), float(scale)


class Row:
    """One stream and one key/value head of a call."""

    def __init__(self, call: Call, b: int, h: int) -> None:
        self.call, self.b, self.h, self.start = call, b, h, int(call.position[b])
        self.groups = call.q.shape[1] // call.k.shape[1]
        self.states = {name: value[b].astype(np.float64) for name, value in call.states.items()}
        kind = call.states["0.k"].dtype
        self.entries = [
            (stored(rotated(k, self.start + t, call.phases), kind), stored(v, kind))
            for t, (k, v) in enumerate(zip(call.k[b, h], call.v[b, h], strict=True))
        ]

    def pair(self, position: int) -> tuple[Array, Array]:
        """The window's entry of a position: from this call, or from the ring."""
        if position >= self.start:
            (k, k_scale), (v, v_scale) = self.entries[position - self.start]
            return k.astype(np.float64) * k_scale, v.astype(np.float64) * v_scale
        return self.ring("k", position % self.call.window), self.ring("v", position % self.call.window)

    def ring(self, tensor: str, slot: int) -> Array:
        scale = self.states[f"0.{tensor}_scale"][self.h, slot] if f"0.{tensor}_scale" in self.states else 1.0
        return self.states[f"0.{tensor}"][self.h, slot] * scale

    def summary(self, m: int, t: int) -> tuple[Array, Array]:
        """Key and value of summary ``m`` after step ``t``."""
        call, h = self.call, self.h
        heads = call.k.shape[1]
        pairs = np.concatenate([call.k[self.b, h], call.v[self.b, h]], axis=-1).astype(np.float64)
        if call.memories[m].startswith("cumulative"):
            known = self.states[f"{m}.mean"] + self.states[f"{m}.carry"]
            mean = np.concatenate([known[h, 0], known[heads + h, 0]])
            for j in range(t + 1):
                mean = mean + (pairs[j] - mean) / (self.start + j + 1)
            return tuple(np.split(mean, 2))  # type: ignore[return-value]
        total, mass = self.decayed(m, t)
        return tuple(np.split(total / mass, 2))  # type: ignore[return-value]

    def decayed(self, m: int, t: int) -> tuple[Array, float]:
        h, heads = self.h, self.call.k.shape[1]
        total = np.concatenate([self.states[f"{m}.sum"][h, 0], self.states[f"{m}.sum"][heads + h, 0]])
        mass = float(self.states[f"{m}.mass"][h, 0, 0])
        kept = math.exp(float(self.call.log_decay[m][h]))
        for j in range(t + 1):
            pair = np.concatenate([self.call.k[self.b, h, j], self.call.v[self.b, h, j]]).astype(np.float64)
            total, mass = kept * total + pair, kept * mass + 1
        return total, mass

    def sink(self, m: int, slot: int, t: int) -> tuple[Array, Array]:
        """Sink ``slot`` as it is after step ``t``."""
        if self.start <= slot <= self.start + t:
            k = rotated(self.call.k[self.b, self.h, slot - self.start], slot, self.call.phases)
            kind = self.call.states[f"{m}.k"].dtype
            return k.astype(kind).astype(np.float64), self.call.v[self.b, self.h, slot - self.start].astype(np.float64)
        return self.states[f"{m}.k"][self.h, slot], self.states[f"{m}.v"][self.h, slot]

    def read(self, t: int, g: int) -> Array:
        """The read of query head ``g`` at step ``t``: one softmax over everything that it sees."""
        call, i, head = self.call, self.start + t, self.h * self.groups + g
        plain = call.q[self.b, head, t].astype(np.float64)
        query = rotated(plain, i, call.phases)
        slots: list[tuple[float, Array]] = []
        summaries = 0
        for m, memory in enumerate(call.memories):
            if memory == "window":
                for j in range(max(0, i - call.window + 1), i + 1):
                    k, v = self.pair(j)
                    slots.append((self.score(query, k), v))
            elif memory == "sinks":
                sinks = call.states[f"{m}.k"].shape[2]
                near = rotated(plain, min(i, sinks + max(call.window, 1) - 1), call.phases)
                for s in range(min(sinks, max(0, i - call.window + 1))):
                    k, v = self.sink(m, s, t)
                    slots.append((self.score(near, k), v))
            else:
                k, v = self.summary(m, t)
                score = self.score(plain, k) + (0 if call.bias is None else float(call.bias[summaries, head]))
                slots.append((score + (math.log(i + 1) if memory.endswith("log_count") else 0), v))
                summaries += 1
        scores = np.array([score for score, _ in slots])
        alone = [] if call.sink_logits is None else [float(call.sink_logits[head])]
        top = max([*scores, *alone])
        weights = np.exp(scores - top)
        read: Array = (weights[:, None] * np.stack([v for _, v in slots])).sum(axis=0)
        return read / (weights.sum() + sum(math.exp(score - top) for score in alone))

    def score(self, q: Array, k: Array) -> float:
        score = float(q @ k) * self.call.scale
        return self.call.softcap * math.tanh(score / self.call.softcap) if self.call.softcap else score


def memory_attention(call: Call) -> dict[str, Array]:
    """``read`` [B, T, Hq * Dv], and the new states by name."""
    batch, heads, time, _ = call.q.shape
    kv_heads, width = call.k.shape[1], call.v.shape[3]
    rows = {(b, h): Row(call, b, h) for b in range(batch) for h in range(kv_heads)}
    read = np.zeros((batch, time, heads, width))
    for b in range(batch):
        for t in range(time):
            for head in range(heads):
                groups = heads // kv_heads
                read[b, t, head] = rows[b, head // groups].read(t, head % groups)
    result = {"read": read.reshape(batch, time, heads * width)}
    for m, memory in enumerate(call.memories):
        result.update(_states_after(call, rows, m, memory))
    return result


def _states_after(call: Call, rows: dict[tuple[int, int], Row], m: int, memory: str) -> dict[str, Array]:
    batch, kv_heads, time, _ = call.k.shape

    def each(get: Any) -> Array:
        return np.array([[get(rows[b, h]) for h in range(kv_heads)] for b in range(batch)], dtype=np.float64)

    def both(get: Any) -> Array:  # keys of all heads, then their values: [B, 2H, 1, D]
        return np.concatenate([each(lambda row: [get(row)[0]]), each(lambda row: [get(row)[1]])], axis=1)

    if memory == "window":
        new = {
            f"{m}.k": each(lambda row: [k for (k, _), _ in row.entries]),
            f"{m}.v": each(lambda row: [v for _, (v, _) in row.entries]),
        }
        if call.states["0.k"].dtype == np.int8:
            new["0.k_scale"] = each(lambda row: [[scale] for (_, scale), _ in row.entries])
            new["0.v_scale"] = each(lambda row: [[scale] for _, (_, scale) in row.entries])
        return new
    if memory == "sinks":
        slots = range(call.states[f"{m}.k"].shape[2])
        return {
            f"{m}.k": each(lambda row: [row.sink(m, s, time - 1)[0] for s in slots]),
            f"{m}.v": each(lambda row: [row.sink(m, s, time - 1)[1] for s in slots]),
        }
    if memory.startswith("cumulative"):  # mean and carry together are the mean
        return {f"{m}.mean": both(lambda row: row.summary(m, time - 1))}
    return {
        f"{m}.sum": both(lambda row: np.split(row.decayed(m, time - 1)[0], 2)),
        f"{m}.mass": each(lambda row: [[row.decayed(m, time - 1)[1]]]),
    }
