"""The recurrent operators' formulas in float64, one step after the other, and drawn calls of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Inputs = dict[str, Any]


@dataclass
class RecurrentCall:
    """One call of an operator.

    Attributes:
        operator: Its name.
        inputs: By name, in its order; ``None``: absent.
        attributes: Its attributes.
        outputs: Names of its outputs: what it reads, then the states, which are inputs too (``new_…``), then others.
        timed: Names of the inputs ``[B, T, ...]``.
        formula: Computes the outputs from inputs in float64.
    """

    operator: str
    inputs: Inputs
    attributes: dict[str, Any]
    outputs: tuple[str, ...]
    timed: tuple[str, ...]
    formula: Callable[[Inputs], list[Array]]

    def expected(self) -> list[Array]:
        wide = {name: None if value is None else value.astype(np.float64) for name, value in self.inputs.items()}
        return self.formula(wide)

    @property
    def states(self) -> list[str]:
        return [name.removeprefix("new_") for name in self.outputs if name.startswith("new_")]

    def of_row(self, row: int) -> RecurrentCall:
        """The same for one stream alone."""
        rows = {*self.timed, *self.states, "position"}
        own = {name: v[row : row + 1] if name in rows and v is not None else v for name, v in self.inputs.items()}
        return replace(self, inputs=own)

    def cut(self, at: int) -> tuple[RecurrentCall, RecurrentCall]:
        """The steps before ``at``, and those after."""

        def part(steps: slice) -> RecurrentCall:
            own = {name: v[:, steps] if name in self.timed and v is not None else v for name, v in self.inputs.items()}
            if "position" in own:
                own["position"] = own["position"] + (steps.start or 0)
            return replace(self, inputs=own)

        return part(slice(0, at)), part(slice(at, None))

    def from_state(self, states: Sequence[Array]) -> RecurrentCall:
        return replace(self, inputs=self.inputs | dict(zip(self.states, states, strict=True)))


def _draw(seed: int) -> Callable[..., Array]:
    random = np.random.default_rng(seed)
    return lambda *shape: random.normal(size=shape).astype(np.float32)


def _silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def convolution(batch: int, time: int, channels: int, taps: int, slots: int, plain: bool, seed: int) -> RecurrentCall:
    draw = _draw(seed)
    inputs = {
        "x": draw(batch, time, channels),
        "state": draw(batch, channels, slots),
        "weight": draw(channels, taps),
        "bias": None if plain else draw(channels),
    }

    def formula(given: Inputs) -> list[Array]:
        steps = np.concatenate([given["state"], given["x"].transpose(0, 2, 1)], axis=2)
        y = np.stack(
            [(steps[:, :, slots + t - taps + 1 : slots + t + 1] * given["weight"]).sum(-1) for t in range(time)], axis=1
        )
        y = y if plain else _silu(y + given["bias"])
        return [y, steps[:, :, steps.shape[2] - slots :]]

    outputs = ("y", "new_state")
    return RecurrentCall("CausalConv", inputs, {"silu": int(not plain)}, outputs, ("x",), formula)


def selection(
    batch: int, time: int, heads: tuple[int, int, int], size: int, decay_of_each: bool, plain: bool, seed: int
) -> RecurrentCall:
    """``heads``: how many, their rows, and groups of them."""
    draw, (count, width, groups) = _draw(seed), heads
    rows = count * width
    inputs = {
        "x": draw(batch, time, rows),
        "dt": draw(batch, time, count) if not plain else np.abs(draw(batch, time, count)),
        "a": -np.exp(draw(*((count, size) if decay_of_each else (count,)))),
        "b": draw(batch, time, groups, size),
        "c": draw(batch, time, groups * size),
        "state": draw(batch, count, width, size),
        "d": None if plain else draw(count),
        "bias": None if plain else draw(count),
        "z": None if plain else draw(batch, time, rows),
    }
    attributes = {"softplus": int(not plain), "least": 0.05 if plain else 0.0, "most": 1.5 if plain else 3e38}

    def formula(given: Inputs) -> list[Array]:
        dt = given["dt"] if plain else np.logaddexp(0, given["dt"] + given["bias"])
        dt = np.clip(dt, attributes["least"], attributes["most"])[..., None, None]
        x = given["x"].reshape(batch_of(given), -1, count, width, 1)
        a = given["a"].reshape(count, 1, -1)
        b, c = (np.repeat(given[n].reshape(*x.shape[:2], groups, 1, size), count // groups, 2) for n in "bc")
        h, reads = given["state"], []
        for t in range(x.shape[1]):
            h = np.exp(dt[:, t] * a) * h + dt[:, t] * x[:, t] * b[:, t]
            reads.append((h * c[:, t]).sum(-1))
        y = np.stack(reads, axis=1)
        if not plain:
            y = y + x[..., 0] * given["d"][:, None]
        y = y.reshape(given["x"].shape)
        return [y if plain else y * _silu(given["z"]), h]

    timed, outputs = ("x", "dt", "b", "c", "z"), ("y", "new_state")
    return RecurrentCall("SelectiveState", inputs, attributes, outputs, timed, formula)


def batch_of(given: Inputs) -> int:
    return len(given["x"])


def delta_rule(
    batch: int, time: int, heads: tuple[int, int], widths: tuple[int, int], decay_of_each: bool, unit: bool, seed: int
) -> RecurrentCall:
    """``heads``: of values, and of keys; ``widths``: of keys, and of values."""
    draw, (count, key_heads), (keys, values) = _draw(seed), heads, widths
    # Keys must not be much longer than 1: the rule would diverge.
    inputs = {
        "q": draw(batch, time, key_heads, keys),
        "k": draw(batch, time, key_heads, keys) * np.float32(1 if unit else keys**-0.5),
        "v": draw(batch, time, count, values),
        "g": -np.exp(draw(*((batch, time, count, keys) if decay_of_each else (batch, time, count)))),
        "b": 1 / (1 + np.exp(-draw(batch, time, count))),
        "state": draw(batch, count, keys, values),
    }
    scale = float(np.float32(keys**-0.5))

    def formula(given: Inputs) -> list[Array]:
        q, k = given["q"], given["k"]
        if unit:
            q, k = _unit(q), _unit(k)
        q, k = (np.repeat(x, count // key_heads, axis=2) for x in (q * scale, k))
        decay = np.exp(given["g"]).reshape(*k.shape[:3], -1, 1)
        y, s, _ = _corrected(q[:, :, :, None], k, given["v"], decay, given["b"], given["state"])
        return [y[:, :, :, 0], s]

    timed, outputs = ("q", "k", "v", "g", "b"), ("y", "new_state")
    return RecurrentCall("GatedDelta", inputs, {"unit": int(unit), "scale": scale}, outputs, timed, formula)


def joined_delta_rule(
    batch: int, time: int, heads: tuple[int, int], widths: tuple[int, int], seed: int
) -> RecurrentCall:
    """As a layer of our own decoder calls it; ``heads``: matrices, and queries that read each."""
    draw, (count, groups), (keys, values) = _draw(seed), heads, widths
    inputs = {
        "qkv": draw(batch, time, count * ((groups + 1) * keys + values)),
        "k": None,
        "v": None,
        "logits": 3 * draw(batch, time, 2 * count),
        "b": None,
        "state": draw(batch, count, keys, values),
    }
    scale = float(np.float32(keys**-0.5))

    def formula(given: Inputs) -> list[Array]:
        q, k, v = _parts(given["qkv"], count, groups, keys)
        gates = 1 / (1 + np.exp(-given["logits"]))
        decay, b = gates[..., :count, None, None], gates[..., count:]
        y, s, written = _corrected(_unit(q * scale), _unit(k), v, decay, b, given["state"])
        return [y.reshape(*y.shape[:2], -1), s, written.reshape(*y.shape[:2], -1)]

    attributes, outputs = {"unit": 2, "scale": scale}, ("y", "new_state", "written")
    return RecurrentCall("GatedDelta", inputs, attributes, outputs, ("qkv", "logits"), formula)


def _unit(x: Array) -> Array:
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def _parts(qkv: Array, heads: int, groups: int, keys: int) -> list[Array]:
    """Queries ``[B, T, H, G, K]``, keys ``[B, T, H, K]`` and values ``[B, T, H, V]``."""
    q, k, v = np.split(qkv, [heads * groups * keys, heads * (groups + 1) * keys], axis=2)
    batch, time = qkv.shape[:2]
    return [q.reshape(batch, time, heads, groups, keys), *(x.reshape(batch, time, heads, -1) for x in (k, v))]


def _corrected(q: Array, k: Array, v: Array, decay: Array, b: Array, s: Array) -> tuple[Array, Array, Array]:
    """Reads ``[B, T, H, G, V]`` of queries ``[B, T, H, G, K]``, the last state, and what each step writes."""
    reads, writes = [], []
    for t in range(k.shape[1]):
        s = decay[:, t] * s
        written = b[:, t, :, None] * (v[:, t] - np.einsum("bhk,bhkv->bhv", k[:, t], s))
        s = s + k[:, t, :, :, None] * written[:, :, None]
        reads.append(np.einsum("bhgk,bhkv->bhgv", q[:, t], s))
        writes.append(written)
    return np.stack(reads, axis=1), s, np.stack(writes, axis=1)


def linear_attention(
    batch: int, time: int, heads: tuple[int, int], widths: tuple[int, int], seed: int, position: int = 5
) -> RecurrentCall:
    """``heads``: matrices, and queries that read each."""
    draw, (count, groups), (keys, values) = _draw(seed), heads, widths
    mean = np.abs(draw(batch, count, keys, values + 1)) + np.float32(0.1)  # z of a stream that has run is above 0
    inputs = {
        "qkv": draw(batch, time, count * ((groups + 1) * keys + values)),
        "position": position + np.arange(batch, dtype=np.int64),
        "mean": mean,
        "carry": np.float32(1e-8) * mean,
    }
    scale = float(np.float32(keys**-0.5))

    def formula(given: Inputs) -> list[Array]:
        q, k, v = _parts(given["qkv"], count, groups, keys)
        q, k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q * scale, k))
        v = np.concatenate([v, np.ones_like(v[..., :1])], axis=-1)
        before = given["position"].reshape(-1, 1, 1, 1)
        sums, reads = (given["mean"] + given["carry"]) * before, []
        for t in range(k.shape[1]):
            sums = sums + k[:, t, :, :, None] * v[:, t, :, None]
            read = np.einsum("bhgk,bhkv->bhgv", q[:, t], sums)
            reads.append(read[..., :-1] / read[..., -1:])
        y = np.stack(reads, axis=1)
        mean = sums / (before + k.shape[1])
        return [y.reshape(*y.shape[:2], -1), mean, np.zeros_like(mean)]

    outputs = ("y", "new_mean", "new_carry")
    return RecurrentCall("LinearAttention", inputs, {"scale": scale}, outputs, ("qkv",), formula)


def weighted_past(batch: int, time: int, channels: int, seed: int) -> RecurrentCall:
    draw = _draw(seed)
    inputs = {
        "decay": draw(channels),
        "first": draw(channels),
        "key": 3 * draw(batch, time, channels),
        "value": draw(batch, time, channels),
        "numerator": draw(batch, channels),
        "denominator": np.abs(draw(batch, channels)),
        "largest": np.where(draw(batch, channels) > 1, np.float32(-1e38), draw(batch, channels)),
    }

    def formula(given: Inputs) -> list[Array]:
        decay, reads = -np.exp(given["decay"]), []
        numerator, denominator, largest = (given[name] for name in ("numerator", "denominator", "largest"))
        for t in range(given["key"].shape[1]):
            k, v = given["key"][:, t], given["value"][:, t]
            top = np.maximum(largest, k + given["first"])
            before, now = np.exp(largest - top), np.exp(k + given["first"] - top)
            reads.append((before * numerator + now * v) / (before * denominator + now))
            top = np.maximum(largest + decay, k)
            before, now = np.exp(largest + decay - top), np.exp(k - top)
            numerator, denominator, largest = before * numerator + now * v, before * denominator + now, top
        return [np.stack(reads, axis=1), numerator, denominator, largest]

    outputs = ("y", "new_numerator", "new_denominator", "new_largest")
    return RecurrentCall("WeightedPast", inputs, {}, outputs, ("key", "value"), formula)
