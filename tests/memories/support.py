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
from edgemem.memories import MEMORIES, Attention, Chunk, Clock, Dims, LoneSummaryWarning
from tests.memories import oracle
from tests.memories.kind import kind_of

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


ANY = tuple(sorted(name for name, cls in MEMORIES.items() if cls.__module__.startswith("edgemem.")))
"""Every kind of memory."""

FIXED = tuple(name for name in ANY if kind_of(name).fixed)
"""Every kind but the growing cache."""


def memory_spec(kv_heads: int, kinds: Sequence[str]) -> st.SearchStrategy[dict[str, Any]]:
    """One memory of the given kinds, with any of its options, or with its defaults."""
    return st.sampled_from(sorted(kinds)).flatmap(
        lambda name: kind_of(name).options(kv_heads).map(lambda chosen: {"type": name, **chosen})
    )


def usual(name: str, **more: Any) -> Specs:
    """A list of one memory, with the options and the neighbour that it needs."""
    return complete([{"type": name, **kind_of(name).usual, **more}])


def complete(specs: Specs) -> Specs:
    """The list, and the memories that must stand beside some of it."""
    needed = {kind_of(spec["type"]).beside for spec in specs} - {spec["type"] for spec in specs}
    return [*specs, *({"type": name} for name in needed if name is not None)]


def history_at(start: int, specs: Specs, sizes: oracle.Sizes, seed: int = 0) -> oracle.History:
    """A past that ends before ``start``: the newest 128 pairs and the first 8, and a summary of all for the rest."""
    random = np.random.default_rng(seed)
    heads, size = sizes.kv_heads, sizes.head_dim

    def draw(*shape: int) -> NDArray[np.float64]:
        return random.normal(size=shape).astype(np.float32).astype(np.float64)

    positions = sorted({*range(min(8, start)), *range(max(0, start - 128), start)})
    history = oracle.History(start, {j: (draw(heads, size), draw(heads, size)) for j in positions})
    for name, spec in zip(oracle.memory_names(specs), specs, strict=True):
        given = kind_of(spec["type"]).given
        if start > 0 and given is not None:
            history.given[name] = given(draw, heads, size)
    return history


def state_at(layer: Attention, specs: Specs, sizes: oracle.Sizes, history: oracle.History) -> States:
    """The states ``[1, ...]`` that hold ``history``: rings by position modulo their length, queues by block number."""
    state = {name: value.numpy() for name, value in initial(layer.states(), 1).items()}
    for name, spec in zip(oracle.memory_names(specs), specs, strict=True):
        fill = kind_of(spec["type"]).fill
        if fill is not None:
            fill(state, name, spec, sizes, history)
    return {name: torch.from_numpy(value) for name, value in state.items()}


def pairs_chunk(pairs: Tensor, start: int, x: Tensor | None = None) -> Chunk:
    """A chunk for a memory alone: keys of all heads, then their values, ``[1, 2H, T, D]``, and no queries."""
    heads, time, size = pairs.shape[1] // 2, pairs.shape[2], pairs.shape[3]
    clock = Clock(torch.tensor([start]), time)
    x = torch.zeros(1, time, WIDTH) if x is None else x
    nothing = torch.zeros(1, heads, time, size)
    return Chunk(clock, x, nothing, nothing, nothing, pairs[:, heads:], pairs, Dims(WIDTH, heads, heads, size))
