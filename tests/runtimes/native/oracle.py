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

    States are those of the operator, by ``<index>.<tensor>`` of the memory in the list. ``given`` says how the operator
    gets queries and keys, which changes nothing here: ``"plain"``, ``"rotated"`` to their positions, or with
    ``"tables"`` of cosines and sines.
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
    rotary_start: int = 0
    neighbours: bool = False
    by_slot: bool = True
    given: str = "plain"
    softcap: float = 0.0
    sink_logits: Array | None = None
    bias: Array | None = None
    parameters: dict[int, Array] = field(default_factory=dict)


def angles(position: int, phases: Array) -> Array:
    """``position * phases`` parts of a turn, in radians."""
    parts = [int(position) * int(phase) % TURN for phase in phases]
    return 2 * np.pi * np.array([part - TURN if part >= TURN // 2 else part for part in parts]) / TURN


def rotated(x: Array, position: int, call: Call) -> Array:
    """``x`` [..., D] with every pair turned: ``(x[f], x[f + F])`` or neighbours, from the call's first element on."""
    x = x.astype(np.float64)
    if call.phases is None:
        return x
    angle, places = angles(position, call.phases), np.arange(2 * len(call.phases)) + call.rotary_start
    low, high = (places[0::2], places[1::2]) if call.neighbours else np.split(places, 2)
    out = x.copy()
    out[..., low] = x[..., low] * np.cos(angle) - x[..., high] * np.sin(angle)
    out[..., high] = x[..., low] * np.sin(angle) + x[..., high] * np.cos(angle)
    return out


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
        kind = call.states["0.k"].dtype if call.window else np.dtype(np.float32)
        self.entries = [
            (stored(rotated(k, self.start + t, call), kind), stored(v, kind))
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
        if "_average" in call.memories[m] and "gated" not in call.memories[m]:
            return self.ring_average(m, t)
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
        parameter = self.call.parameters[m].astype(np.float64)
        for j in range(t + 1):
            kept, taken = math.exp(parameter[h]) if parameter.ndim == 1 else 0.0, 1.0
            if parameter.ndim == 3:
                kept, taken = (1 / (1 + math.exp(sign * parameter[self.b, j, h])) for sign in (-1, 1))
            total, mass = kept * total + taken * self.raw(j), kept * mass + taken
        return total, mass

    def raw(self, j: int, kind: Any = np.float64) -> Array:
        """The un-rotated pair of step ``j`` of the call, stored as ``kind``: its key, then its value."""
        parts = [stored(x[self.b, self.h, j], np.dtype(kind)) for x in (self.call.k, self.call.v)]
        return np.concatenate([part.astype(np.float64) * scale for part, scale in parts])

    def ring_average(self, m: int, t: int) -> tuple[Array, Array]:
        pairs, h, heads = self.call.states[f"{m}.pairs"], self.h, self.call.k.shape[1]
        size, i = pairs.shape[2], self.start + t
        total, mass = np.zeros(2 * pairs.shape[3]), 0.0
        ring = pairs[self.b].astype(np.float64) * self.states.get(f"{m}.pairs_scale", 1.0)
        for p in range(max(0, i - size + 1), i + 1):
            old = np.concatenate([ring[h, p % size], ring[heads + h, p % size]])
            beta = 1.0
            if m in self.call.parameters:
                log_beta = self.call.parameters[m]
                beta = math.exp(log_beta[h if len(log_beta) > 1 else 0, i - p])
            total += beta * (old if p < self.start else self.raw(p - self.start, pairs.dtype))
            mass += beta
        return tuple(np.split(total / mass, 2))  # type: ignore[return-value]

    def count(self, m: int, i: int) -> int:
        """How many pairs summary ``m`` stands for at position ``i``."""
        if f"{m}.pairs" in self.states:
            return min(i + 1, self.states[f"{m}.pairs"].shape[1])
        return i + 1

    def block(self, m: int, b: int) -> Array:
        """The mean pair of block ``b`` of a compressed memory; the sum, where it is not complete after the call."""
        rate, h, heads = int(self.call.memories[m].split(":")[2]), self.h, self.call.k.shape[1]
        time, slots, partial = self.call.k.shape[2], self.states[f"{m}.slots"], self.states[f"{m}.partial"]
        if (b + 1) * rate <= self.start:
            return np.concatenate([slots[h, b % slots.shape[1]], slots[heads + h, b % slots.shape[1]]])
        total = np.zeros(2 * slots.shape[2])
        if b == self.start // rate:
            total = np.concatenate([partial[h, 0], partial[heads + h, 0]])
        for p in range(max(self.start, b * rate), min((b + 1) * rate, self.start + time)):
            total = total + self.raw(p - self.start)
        return total / rate if (b + 1) * rate <= self.start + time else total

    def exact(self, m: int, t: int) -> list[tuple[float, Array]]:
        """Measure and pair of every slot after step ``t``, the largest measure first."""
        h, heads, width = self.h, self.call.k.shape[1], self.call.k.shape[3]
        slots, measures = self.states[f"{m}.slots"], self.states[f"{m}.surprise"][h, :, 0]
        kept = [(float(s), np.concatenate([slots[h, j], slots[heads + h, j]])) for j, s in enumerate(measures)]
        for j in range(t + 1):
            written = self.call.parameters[m][self.b, j, h * width : (h + 1) * width].astype(np.float64)
            kept.append((float(np.linalg.norm(written)), self.raw(j)))
        return sorted(kept, key=lambda slot: -slot[0])[: len(measures)]

    def sink(self, m: int, slot: int, t: int) -> tuple[Array, Array]:
        """Sink ``slot`` as it is after step ``t``."""
        if self.start <= slot <= self.start + t:
            k = rotated(self.call.k[self.b, self.h, slot - self.start], slot, self.call)
            kind = self.call.states[f"{m}.k"].dtype
            return k.astype(kind).astype(np.float64), self.call.v[self.b, self.h, slot - self.start].astype(np.float64)
        return self.states[f"{m}.k"][self.h, slot], self.states[f"{m}.v"][self.h, slot]

    def read(self, t: int, g: int) -> Array:
        """The read of query head ``g`` at step ``t``: one softmax over everything that it sees."""
        call, i, head = self.call, self.start + t, self.h * self.groups + g
        plain = call.q[self.b, head, t].astype(np.float64)
        query = rotated(plain, i, call)
        slots: list[tuple[float, Array]] = []
        summaries = 0
        for m, memory in enumerate(call.memories):
            if memory == "window":
                for j in range(max(0, i - call.window + 1), i + 1):
                    k, v = self.pair(j)
                    slots.append((self.score(query, k), v))
            elif memory == "sinks":
                sinks = call.states[f"{m}.k"].shape[2]
                near = rotated(plain, min(i, sinks + max(call.window, 1) - 1) if call.by_slot else i, call)
                for s in range(min(sinks, max(0, i - call.window + 1))):
                    k, v = self.sink(m, s, t)
                    slots.append((self.score(near, k), v))
            elif memory.startswith("compressed"):
                shown, rate = map(int, memory.split(":")[1:])
                outside = max(0, i - call.window + 1) // rate
                for b in range(max(0, outside - shown), outside):
                    k, v = np.split(self.block(m, b), 2)
                    slots.append((self.score(plain, k), v))
            elif memory == "exact":
                pairs = [np.split(pair, 2) for measure, pair in self.exact(m, t) if measure >= 0]
                slots.extend((self.score(plain, k), v) for k, v in pairs)
            else:
                k, v = self.summary(m, t)
                score = self.score(plain, k) + (0 if call.bias is None else float(call.bias[summaries, head]))
                slots.append((score + (math.log(self.count(m, i)) if memory.endswith("log_count") else 0), v))
                summaries += 1
        scores = np.array([score for score, _ in slots])
        alone = [] if call.sink_logits is None else [float(call.sink_logits[head])]
        if not len(scores):
            return np.zeros(call.v.shape[3])
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

    def exact_half(row: Row, part: int) -> list[Array]:
        return [np.split(pair, 2)[part] for _, pair in row.exact(m, time - 1)]

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
    if f"{m}.pairs" in call.states:
        kind = call.states[f"{m}.pairs"].dtype
        slots = [stored(x, kind) for x in np.concatenate([call.k, call.v], axis=1).reshape(-1, call.k.shape[3])]
        parts = {"pairs": np.array([x for x, _ in slots]), "pairs_scale": np.array([[scale] for _, scale in slots])}
        shape = (batch, 2 * kv_heads, time, -1)
        return {
            name: part.reshape(shape)
            for part_name, part in parts.items()
            if (name := f"{m}.{part_name}") in call.states
        }
    if memory.startswith("compressed"):
        return _queue_after(call, m, each)
    if memory == "exact":
        keys_and_values = [each(lambda row, part=part: exact_half(row, part)) for part in (0, 1)]
        return {
            f"{m}.slots": np.concatenate(keys_and_values, axis=1),
            f"{m}.surprise": each(lambda row: [[measure] for measure, _ in row.exact(m, time - 1)]),
        }
    if memory.startswith("cumulative"):  # mean and carry together are the mean
        return {f"{m}.mean": both(lambda row: row.summary(m, time - 1))}
    return {
        f"{m}.sum": both(lambda row: np.split(row.decayed(m, time - 1)[0], 2)),
        f"{m}.mass": each(lambda row: [[row.decayed(m, time - 1)[1]]]),
    }


def _queue_after(call: Call, m: int, each: Any) -> dict[str, Array]:
    rate, size = int(call.memories[m].split(":")[2]), call.states[f"{m}.slots"].shape[2]

    def slots(row: Row, part: int) -> list[Array]:
        complete, old = (row.start + call.k.shape[2]) // rate, row.states[f"{m}.slots"]
        kept = list(old[row.h + part * call.k.shape[1]])
        for b in range(row.start // rate, complete):
            kept[b % size] = np.split(row.block(m, b), 2)[part]
        return kept

    def partial(row: Row, part: int) -> list[Array]:
        return [np.split(row.block(m, (row.start + call.k.shape[2]) // rate), 2)[part]]

    return {
        f"{m}.slots": np.concatenate([each(lambda row: slots(row, 0)), each(lambda row: slots(row, 1))], axis=1),
        f"{m}.partial": np.concatenate([each(lambda row: partial(row, 0)), each(lambda row: partial(row, 1))], axis=1),
    }
