"""What an attention layer over memories computes, in float64 and straight from the formulas of docs/memories.md.

For every query the whole history is read again: nothing is carried from one query to the next, nothing is stored in a
ring, nothing is done in chunks. Shares no code with edgemem.

Symbols: ``i`` position of the query, ``j`` of a pair, ``h`` key/value head, ``g`` one of its query heads, ``W`` window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.memories.kind import kind_of

Array = NDArray[np.float64]
TURN = 1 << 31
"""A rotary frequency is a whole number of these parts of a turn for each position."""


@dataclass(frozen=True)
class Sizes:
    heads: int
    kv_heads: int
    head_dim: int
    theta: float = 10000.0

    @property
    def groups(self) -> int:
        return self.heads // self.kv_heads


@dataclass
class History:
    """What one stream has seen before the first query.

    Attributes:
        start: Position of the first query.
        pairs: Un-rotated keys and values ``[H, D]`` by position: those that a memory lists one by one.
        given: What stands for all pairs before ``start``, by memory: ``mean`` (cumulative, linear attention), ``sum``
            and ``mass`` (decaying averages), ``matrix`` (delta rule).
    """

    start: int = 0
    pairs: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    given: dict[str, dict[str, Array]] = field(default_factory=dict)


@lru_cache(maxsize=100_000)
def rotary_angles(position: int, head_dim: int, theta: float) -> Array:
    """Angles ``[D/2]`` in ``[-pi, pi)``: the phase is an exact fraction of a turn before it becomes a float."""
    angles = []
    for f in range(head_dim // 2):
        parts = round(theta ** (-2 * f / head_dim) / (2 * math.pi) * TURN)
        phase = Fraction(position * parts, TURN) % 1
        angles.append(2 * math.pi * float(phase - 1 if phase >= Fraction(1, 2) else phase))
    return np.array(angles)


def rotated(x: Array, position: int, theta: float) -> Array:
    """``x`` [..., D] with every pair ``(x[f], x[f + D/2])`` turned by its angle at ``position``."""
    half = x.shape[-1] // 2
    angle = rotary_angles(int(position), x.shape[-1], theta)
    low, high = x[..., :half], x[..., half:]
    return np.concatenate(
        [low * np.cos(angle) - high * np.sin(angle), low * np.sin(angle) + high * np.cos(angle)], axis=-1
    )


def memory_names(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """``window``, and ``window_2`` where it occurs again."""
    kinds = [str(spec["type"]) for spec in specs]
    return [
        kind if kinds[:n].count(kind) == 0 else f"{kind}_{kinds[:n].count(kind) + 1}" for n, kind in enumerate(kinds)
    ]


def sigmoid(x: Array | float) -> Any:
    return 1.0 / (1.0 + np.exp(-x))


def attention_layer(
    sizes: Sizes,
    specs: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, Array],
    x: Array,
    history: History | None = None,
) -> Array:
    """The layer's output ``[T, C]`` for the input ``x`` [T, C] of one stream."""
    return Layer(sizes, specs, parameters, x, history or History()).output()


class Layer:
    def __init__(
        self,
        sizes: Sizes,
        specs: Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Array],
        x: Array,
        history: History,
    ) -> None:
        self.sizes, self.specs, self.parameters, self.history = sizes, specs, parameters, history
        self.names = memory_names(specs)
        self.window = max((spec["window"] for spec in specs if spec["type"] == "window"), default=0)
        self.start = history.start
        self.x = {self.start + t: row for t, row in enumerate(x)}
        heads, kv_heads, size = sizes.heads, sizes.kv_heads, sizes.head_dim
        self.q: dict[int, Array] = {}  # [H, G, D]
        self.pairs = dict(history.pairs)
        for i, row in self.x.items():
            q, k, v = np.split(row @ parameters["qkv"], [heads * size, (heads + kv_heads) * size])
            self.q[i] = q.reshape(kv_heads, sizes.groups, size)
            self.pairs[i] = (k.reshape(kv_heads, size), v.reshape(kv_heads, size))

    def output(self) -> Array:
        rows = []
        for i in self.x:
            read = np.zeros((self.sizes.kv_heads, self.sizes.groups, self.sizes.head_dim))
            for h in range(self.sizes.kv_heads):
                for g in range(self.sizes.groups):
                    read[h, g] = self._read(i, h, g)
            rows.append(read.reshape(-1) @ self.parameters["out"])
        return np.stack(rows)

    def _read(self, i: int, h: int, g: int) -> Array:
        """One softmax over the slots of all memories; matrix reads are mixed in by the gates."""
        scores: list[float] = []
        values: list[Array] = []
        matrix_reads: list[Array] = []
        has_slots = False
        for name, spec in zip(self.names, self.specs, strict=True):
            kind = kind_of(spec["type"])
            if kind.matrix is not None:
                matrix_reads.append(kind.matrix(self, name, i, h, g))
            if kind.slots is not None:
                has_slots = True
                for score, value in kind.slots(self, name, spec, i, h, g):
                    scores.append(score)
                    values.append(value)
        reads = matrix_reads
        if has_slots:
            reads = [self._softmax(scores, values), *matrix_reads]
        if len(reads) == 1:
            return reads[0]
        gates = np.exp(self.parameters["mix"][:, h, g])
        total: Array = sum(gate * read for gate, read in zip(gates / gates.sum(), reads, strict=True))
        return total

    def _softmax(self, scores: list[float], values: list[Array]) -> Array:
        if not scores:
            return np.zeros(self.sizes.head_dim)
        weights = np.exp(np.array(scores) - max(scores))
        read: Array = (weights[:, None] * np.stack(values)).sum(axis=0) / weights.sum()
        return read

    # For the kinds in tests/memories/kinds: (score, value) of everything that query i sees.

    def exact(self, j: int, h: int, q: Array) -> tuple[float, Array]:
        k, v = self.pairs[j]
        return self.score(q, rotated(k[h], j, self.sizes.theta)), v[h]

    def score(self, q: Array, k: Array) -> float:
        """``q · k / √D``."""
        return float(q @ k) / math.sqrt(self.sizes.head_dim)

    def summary(
        self, name: str, spec: Any, i: int, h: int, g: int, pair: tuple[Array, Array], count: int
    ) -> list[tuple[float, Array]]:
        score = self.score(self.q[i][h, g], pair[0])
        bias = spec.get("bias", "learned")
        if bias == "learned":
            score += float(self.parameters[f"memories.{name}.bias"][h, g])
        elif bias == "log_count":
            score += math.log(count)
        return [(score, pair[1])]

    def weighted(self, weights: Mapping[int, float], h: int) -> tuple[Array, Array]:
        """``(Σ β_j k_j / Σ β_j, Σ β_j v_j / Σ β_j)``."""
        mass = sum(weights.values())
        k = sum(weight * self.pairs[j][0][h] for j, weight in weights.items()) / mass
        v = sum(weight * self.pairs[j][1][h] for j, weight in weights.items()) / mass
        return k, v

    def decaying(self, name: str, h: int, i: int, keep: Sequence[float], take: Sequence[float]) -> tuple[Array, Array]:
        """``Σ_j take_j (Π_{j<r≤i} keep_r) (k_j, v_j)`` over its mass; ``keep`` and ``take`` run from the start."""
        size = self.sizes.head_dim
        total, mass = np.zeros(2 * size), 0.0
        given = self.history.given.get(name)
        if given is not None:
            left = math.prod(keep)
            total, mass = total + left * given["sum"][h], mass + left * float(given["mass"][h, 0])
        for t, j in enumerate(range(self.start, i + 1)):
            weight = take[t] * math.prod(keep[t + 1 :])
            total = total + weight * np.concatenate([self.pairs[j][0][h], self.pairs[j][1][h]])
            mass += weight
        return total[:size] / mass, total[size:] / mass
