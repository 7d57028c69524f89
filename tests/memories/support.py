"""Layers to test, the host's part of the contract (ring writes), and the oracle's view of both."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from edgemem.contract import StateSpec
from edgemem.memories import Attention, Chunk, Clock, Dims, LoneSummaryWarning
from tests.memories import oracle

Specs = list[dict[str, Any]]
States = dict[str, Tensor]

WIDTH = 12
"""Width of the residual stream."""

TOLERANCE = 3e-6
"""Largest error over the largest output: some 25 roundings of float32. (Largest seen in 25 000 comparisons: 8e-7.)"""


def make_layer(specs: Specs, sizes: oracle.Sizes, seed: int = 0) -> Attention:
    """A layer whose every trainable number is drawn: nothing stands at a value that hides an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LoneSummaryWarning)
        layer = Attention(Dims(WIDTH, sizes.heads, sizes.kv_heads, sizes.head_dim, theta=sizes.theta), specs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name in ("qkv", "out"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * parameter.shape[0] ** -0.5)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return layer


def inputs(time: int, batch: int = 1, seed: int = 0) -> Tensor:
    """Normal numbers ``[B, T, C]``."""
    return torch.randn(batch, time, WIDTH, generator=torch.Generator().manual_seed(seed + 1))


def parameters_of(layer: Attention) -> dict[str, NDArray[np.float64]]:
    return {name: value.detach().double().numpy() for name, value in layer.state_dict().items()}


def truth(
    layer: Attention, specs: Specs, sizes: oracle.Sizes, x: Tensor, histories: Sequence[oracle.History] | None = None
) -> NDArray[np.float64]:
    """What the oracle says: ``[B, T, C]``."""
    histories = [oracle.History()] * x.shape[0] if histories is None else histories
    parameters = parameters_of(layer)
    rows = [
        oracle.attention_layer(sizes, specs, parameters, row, past)
        for row, past in zip(x.double().numpy(), histories, strict=True)
    ]
    return np.stack(rows)


def initial(specs: Sequence[StateSpec], batch: int) -> States:
    return {spec.name: torch.full((batch, *spec.fixed_shape), spec.initial) for spec in specs}


def advance(
    specs: Sequence[StateSpec], state: Mapping[str, Tensor], start: Tensor, new: Mapping[str, Tensor]
) -> States:
    """The host's part: entry ``t`` of an appended state goes to slot ``(position + t) mod W``."""
    after = {}
    for spec in specs:
        after[spec.name] = new[spec.name]
        if spec.update == "append":
            ring = state[spec.name].clone()
            for row, position in enumerate(start.tolist()):
                for t in range(new[spec.name].shape[2]):
                    ring[row, :, (position + t) % ring.shape[2]] = new[spec.name][row, :, t]
            after[spec.name] = ring
    return after


def chunk_limit(layer: Attention) -> int:
    limits = [memory.max_chunk for _, memory in layer.named_memories()]
    return min((limit for limit in limits if limit is not None), default=1 << 20)


@torch.no_grad()
def stream(
    layer: Attention,
    x: Tensor,
    sizes: Sequence[int],
    start: Sequence[int] | int = 0,
    state: States | None = None,
) -> tuple[Tensor, States]:
    """Feed ``x`` [B, T, C] in chunks of the given sizes: the outputs ``[B, T, C]``, and the states at the end."""
    assert sum(sizes) == x.shape[1]
    position = torch.tensor([start] * x.shape[0] if isinstance(start, int) else list(start))
    specs = layer.states()
    state = initial(specs, x.shape[0]) if state is None else state
    outputs, done = [], 0
    for size in sizes:
        output, new = layer(x[:, done : done + size], Clock(position, size), state)
        assert set(new) == {spec.name for spec in specs}
        state = advance(specs, state, position, new)
        outputs.append(output)
        position, done = position + size, done + size
    return torch.cat(outputs, dim=1), state


@torch.no_grad()
def parallel(layer: Attention, x: Tensor) -> Tensor:
    """The parallel form from position 0: ``[B, T, C]``."""
    output, _ = layer(x, Clock(torch.zeros(x.shape[0], dtype=torch.int64), x.shape[1]), None)
    assert isinstance(output, Tensor)
    return output


def error(got: Tensor, want: NDArray[np.float64] | Tensor) -> float:
    """Largest difference over the largest wanted number (1 where that is smaller)."""
    wanted = np.asarray(want, dtype=np.float64)
    assert got.shape == wanted.shape
    assert torch.isfinite(got).all()
    return float(np.abs(got.double().numpy() - wanted).max() / max(1.0, np.abs(wanted).max()))


def chunkings(total: int, largest: int) -> st.SearchStrategy[list[int]]:
    """Ways to cut ``total`` steps into chunks of at most ``largest``."""

    @st.composite
    def draw_sizes(draw: st.DrawFn) -> list[int]:
        sizes: list[int] = []
        while sum(sizes) < total:
            sizes.append(draw(st.integers(1, min(largest, total - sum(sizes)))))
        return sizes

    return draw_sizes()


def layer_sizes() -> st.SearchStrategy[oracle.Sizes]:
    """Multi-head, grouped and multi-query layers."""
    return st.builds(
        lambda kv_heads, groups, half, theta: oracle.Sizes(kv_heads * groups, kv_heads, 2 * half, theta),
        st.integers(1, 2),
        st.integers(1, 3),
        st.integers(2, 4),
        st.sampled_from([10000.0, 10.0]),
    )


def memory_spec(kv_heads: int, kinds: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    """One memory of the given kinds, with any of its options, or with its defaults."""
    bias = {"bias": st.sampled_from(["none", "learned"])}
    counted = {"bias": st.sampled_from(["none", "learned", "log_count"])}
    window = st.integers(1, 9)
    gamma = st.floats(0.01, 0.99)
    options: dict[str, st.SearchStrategy[dict[str, Any]]] = {
        "window": st.fixed_dictionaries({"window": window}),
        "full": st.just({}),
        "sinks": st.fixed_dictionaries({}, optional={"slots": st.integers(1, 5)}),
        "moving_average": st.fixed_dictionaries({"window": window}, optional=counted),
        "weighted_average": window.flatmap(
            lambda w: st.fixed_dictionaries(
                {"window": st.just(w)},
                optional={**counted, "beta": st.lists(st.floats(0.05, 20), min_size=w, max_size=w)},
            )
        ),
        "geometric": st.fixed_dictionaries(
            {}, optional={**bias, "decay": gamma | st.lists(gamma, min_size=kv_heads, max_size=kv_heads)}
        ),
        "cumulative": st.fixed_dictionaries({}, optional=counted),
        "gated_average": st.fixed_dictionaries({}, optional=bias),
        "compressed": st.fixed_dictionaries({"slots": st.integers(1, 4)}, optional={"rate": st.integers(2, 5)}),
        "linear_attention": st.just({}),
        "gated_delta": st.just({}),
    }
    return st.sampled_from(sorted(kinds)).flatmap(
        lambda kind: options[kind].map(lambda chosen: {"type": kind, **chosen})
    )


FIXED = (
    "window",
    "sinks",
    "moving_average",
    "weighted_average",
    "geometric",
    "cumulative",
    "gated_average",
    "compressed",
    "linear_attention",
    "gated_delta",
)
"""Every kind but the growing cache."""

ANY = (*FIXED, "full")


def history_at(start: int, specs: Specs, sizes: oracle.Sizes, seed: int = 0) -> oracle.History:
    """A past that ends before ``start``: the newest 128 pairs and the first 8, and a summary of all for the rest."""
    random = np.random.default_rng(seed)
    heads, size = sizes.kv_heads, sizes.head_dim

    def draw(*shape: int) -> NDArray[np.float64]:
        return random.normal(size=shape).astype(np.float32).astype(np.float64)

    positions = sorted({*range(min(8, start)), *range(max(0, start - 128), start)})
    history = oracle.History(start, {j: (draw(heads, size), draw(heads, size)) for j in positions})
    for name, spec in zip(oracle.memory_names(specs), specs, strict=True):
        given = {
            "cumulative": {"mean": draw(heads, 2 * size)},
            "geometric": {"sum": draw(heads, 2 * size), "mass": np.abs(draw(heads, 1)) + 1},
            "gated_average": {"sum": draw(heads, 2 * size), "mass": np.abs(draw(heads, 1)) + 1},
            "linear_attention": {
                "mean": np.concatenate([draw(heads, size, size), np.abs(draw(heads, size, 1)) + 1], axis=-1)
            },
            "gated_delta": {"matrix": draw(heads, size, size)},
        }
        if start > 0 and spec["type"] in given:
            history.given[name] = given[spec["type"]]
    return history


def side_by_side(pair: tuple[NDArray[np.float64], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Keys of all heads, then their values: ``[2H, D]``."""
    return np.concatenate(pair, axis=0)


def state_at(layer: Attention, specs: Specs, sizes: oracle.Sizes, history: oracle.History) -> States:
    """The states ``[1, ...]`` that hold ``history``: rings by position modulo their length, queues by block number."""
    state = {name: value.numpy() for name, value in initial(layer.states(), 1).items()}
    for name, spec in zip(oracle.memory_names(specs), specs, strict=True):
        kind = spec["type"]
        if kind == "window":
            for j in range(max(0, history.start - spec["window"]), history.start):
                k, v = history.pairs[j]
                state[f"{name}.k"][0, :, j % spec["window"]] = oracle.rotated(k, j, sizes.theta)
                state[f"{name}.v"][0, :, j % spec["window"]] = v
        elif kind in ("moving_average", "weighted_average"):
            for j in range(max(0, history.start - spec["window"]), history.start):
                state[f"{name}.pairs"][0, :, j % spec["window"]] = side_by_side(history.pairs[j])
        elif kind == "sinks":
            for s in range(min(spec.get("slots", 4), history.start)):
                state[f"{name}.k"][0, :, s] = oracle.rotated(history.pairs[s][0], s, sizes.theta)
                state[f"{name}.v"][0, :, s] = history.pairs[s][1]
        elif kind == "compressed":
            queue, rate = state[f"{name}.slots"], spec.get("rate", 4)
            filling = history.start // rate
            for b in range(max(0, filling - queue.shape[2]), filling):
                members = [side_by_side(history.pairs[j]) for j in range(b * rate, (b + 1) * rate)]
                queue[0, :, b % queue.shape[2]] = np.mean(members, axis=0)
            for j in range(filling * rate, history.start):
                state[f"{name}.partial"][0, :, 0] += side_by_side(history.pairs[j])
        elif kind in ("linear_attention", "gated_delta"):
            for tensor, value in history.given.get(name, {}).items():
                state[f"{name}.{tensor}"][0] = value
        else:
            for tensor, value in history.given.get(name, {}).items():
                keys, values = np.split(value, 2, axis=-1) if tensor != "mass" else (value, value[:0])
                state[f"{name}.{tensor}"][0, :, 0] = side_by_side((keys, values))
    return {name: torch.from_numpy(value) for name, value in state.items()}


def pairs_chunk(pairs: Tensor, start: int, x: Tensor | None = None) -> Chunk:
    """A chunk for a memory alone: keys of all heads, then their values, ``[1, 2H, T, D]``, and no queries."""
    heads, time, size = pairs.shape[1] // 2, pairs.shape[2], pairs.shape[3]
    clock = Clock(torch.tensor([start]), time)
    x = torch.zeros(1, time, WIDTH) if x is None else x
    nothing = torch.zeros(1, heads, time, size)
    return Chunk(clock, x, nothing, nothing, nothing, pairs[:, heads:], pairs, Dims(WIDTH, heads, heads, size))
