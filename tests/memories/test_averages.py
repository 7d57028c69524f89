"""Summaries: averages of all kinds hold to their formulas at boundaries, for ever, and at any scale."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgemem.memories import Chunk, Dims
from edgemem.memories.kinds.cumulative import CumulativeAverage
from edgemem.memories.kinds.gated_average import GatedAverage
from edgemem.memories.kinds.geometric import GeometricAverage
from edgemem.memories.kinds.moving_average import MovingAverage
from edgemem.memories.kinds.weighted_average import WeightedMovingAverage
from edgemem.memories.summary import Summary, decay_matrix
from tests.memories import oracle
from tests.memories.support import (
    TOLERANCE,
    WIDTH,
    Specs,
    error,
    inputs,
    make_layer,
    pairs_chunk,
    parallel,
    stream,
    truth,
)

SIZES = oracle.Sizes(heads=4, kv_heads=2, head_dim=4)
ONE = Dims(WIDTH, heads=1, kv_heads=1, head_dim=2)
RINGS = ("moving_average", "weighted_average")
KINDS: list[dict[str, Any]] = [
    {"type": "moving_average"},
    {"type": "moving_average", "bias": "log_count"},
    {"type": "weighted_average"},
    {"type": "weighted_average", "bias": "none"},
]


def lengths(window: int) -> list[int]:
    return sorted({1, max(1, window - 1), window, window + 1, 2 * window, 2 * window + 1})


def random_pairs(time: int, seed: int = 0) -> Tensor:
    """Pairs of one head, ``[1, 2, T, 2]``."""
    return torch.randn(1, 2, time, 2, generator=torch.Generator().manual_seed(seed))


def averages(
    memory: Summary, pairs: Tensor, chunk: int, x: Tensor | None = None, start: int = 0, state: Any = None
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Summaries of chunk after chunk, and the state after each; for memories that replace their states."""
    with torch.no_grad():
        if state is None:
            state = {s.name: torch.full((1, *s.fixed_shape), s.initial) for s in memory.states()}
        for at in range(0, pairs.shape[2], chunk):
            part = pairs[:, :, at : at + chunk]
            gates = None if x is None else x[:, at : at + chunk]
            summary, state = memory.summarise(pairs_chunk(part, start + at, gates), state)
            yield summary, state


# Rings


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_ring_average_is_right_at_every_boundary_of_its_ring(kind: dict[str, Any], window: int) -> None:
    specs = [{**kind, "window": window}, {"type": "sinks", "slots": 2}]
    layer = make_layer(specs, SIZES)
    for time in lengths(window):
        x = inputs(time, seed=time)
        want = truth(layer, specs, SIZES, x)
        assert error(parallel(layer, x), want) < TOLERANCE
        for chunk in range(1, window + 1):
            chunks = [chunk] * (time // chunk) + [1] * (time % chunk)
            assert error(stream(layer, x, chunks)[0], want) < TOLERANCE


def test_before_a_window_is_full_the_average_is_over_what_is_there() -> None:
    pairs = torch.arange(1.0, 7.0)[None, None, :, None].expand(1, 2, 6, 2)
    with torch.no_grad():
        got, _ = MovingAverage(ONE, window=4).summarise(pairs_chunk(pairs, 0), None)
    assert got[0, 0, :, 0].tolist() == [1.0, 1.5, 2.0, 2.5, 3.5, 4.5]


def test_beta_is_by_age_with_the_newest_first() -> None:
    pairs = torch.tensor([1.0, 10.0, 100.0])[None, None, :, None].expand(1, 2, 3, 2)
    with torch.no_grad():
        got, _ = WeightedMovingAverage(ONE, window=2, beta=[3.0, 1.0]).summarise(pairs_chunk(pairs, 0), None)
    assert got[0, 0, :, 0].tolist() == pytest.approx([1.0, (30 + 1) / 4, (300 + 10) / 4])


def test_fixed_weights_are_not_trained_and_learned_ones_are() -> None:
    fixed, learned = WeightedMovingAverage(ONE, window=2, beta=[3.0, 1.0]), WeightedMovingAverage(ONE, window=2)
    assert not fixed.log_beta.requires_grad
    assert learned.log_beta.requires_grad
    assert not GeometricAverage(ONE, decay=0.5).decay_logit.requires_grad
    assert GeometricAverage(ONE).decay_logit.requires_grad


@pytest.mark.parametrize("chunk", [1, 64])
def test_a_moving_average_does_not_drift_after_large_transients(chunk: int) -> None:
    window, steps = 64, 50_000 if chunk > 1 else 3_000
    data = random_pairs(steps)
    data[:, :, : steps // 2 : 100] *= 1e6
    memory, ring = MovingAverage(ONE, window=window), torch.zeros(1, 2, window, 2)
    for at in range(0, steps, chunk):
        part = data[:, :, at : at + chunk]
        with torch.no_grad():
            got, new = memory.summarise(pairs_chunk(part, at), {"pairs": ring})
        ring[:, :, torch.arange(at, at + part.shape[2]) % window] = new["pairs"]
    exact = data[0, :, -window:].double().mean(dim=1)
    assert (got[0, :, -1].double() - exact).abs().max() < 1e-6

    running = np.zeros((2, 2), dtype=np.float32)  # what a running sum would make of the same stream
    values = data[0].numpy()
    for i in range(steps):
        running += values[:, i] - (values[:, i - window] if i >= window else 0)
    assert np.abs(running / window - exact.numpy()).max() > 1e-4


# The cumulative mean


@settings(max_examples=25, deadline=None)
@given(chunk=st.integers(1, 50), offset=st.sampled_from([0.0, 1.0, 1000.0]), seed=st.integers(0, 99))
def test_the_cumulative_mean_is_the_mean_however_it_is_cut(chunk: int, offset: float, seed: int) -> None:
    pairs = random_pairs(500, seed) + offset
    got = torch.cat([summary for summary, _ in averages(CumulativeAverage(ONE), pairs, chunk)], dim=2)
    exact = pairs.double().cumsum(dim=2) / torch.arange(1, 501)[:, None]
    assert (got.double() - exact).abs().max() < 1e-6 * max(1.0, offset)


@pytest.mark.parametrize("start", [1 << 24, (1 << 26) + 1, 1 << 30])
@pytest.mark.parametrize("chunk", [1, 7])
def test_the_cumulative_mean_follows_a_shift_that_a_plain_float32_mean_misses(start: int, chunk: int) -> None:
    steps = 2_000
    pairs = torch.full((1, 2, steps, 2), 1.5)
    state = {"mean": torch.ones(1, 2, 1, 2), "carry": torch.zeros(1, 2, 1, 2)}
    *_, (_, state) = averages(CumulativeAverage(ONE), pairs, chunk, start=start, state=state)
    exact = 1.0 + 0.5 * steps / (start + steps)
    kept = state["mean"].double() + state["carry"].double()
    assert (kept - exact).abs().max() < 1e-3 * (exact - 1.0)
    assert (state["mean"].double() - exact).abs().max() <= 2.0**-23

    plain = np.float32(1.0)
    for i in range(start, start + steps):
        plain += (np.float32(1.5) - plain) / np.float32(i + 1)
    assert plain == np.float32(1.0), "a plain mean stands still"


def test_the_mean_of_a_constant_stays_that_constant() -> None:
    pairs = torch.full((1, 2, 20_000, 2), 0.1)
    *_, (summary, _) = averages(CumulativeAverage(ONE), pairs, 50)
    assert (summary - 0.1).abs().max() < 2e-8


# Decaying averages


@settings(max_examples=40, deadline=None)
@given(time=st.integers(1, 30), seed=st.integers(0, 999), strength=st.sampled_from([0.01, 1.0, 30.0]))
def test_the_decay_matrix_is_the_product_of_the_decays_between(time: int, seed: int, strength: float) -> None:
    log_a = -torch.rand(1, 2, time, 1, generator=torch.Generator().manual_seed(seed)) * strength
    within, carried = decay_matrix(torch.ones(time, time).tril(), log_a)
    exact = log_a[0, :, :, 0].double().numpy()
    for h in range(2):
        for t in range(time):
            assert float(carried[0, h, t, 0]) == pytest.approx(math.exp(math.fsum(exact[h, : t + 1])), rel=1e-4)
            for j in range(time):
                want = math.exp(math.fsum(exact[h, j + 1 : t + 1])) if j <= t else 0.0
                assert float(within[0, h, t, j]) == pytest.approx(want, rel=1e-4, abs=1e-30)


@pytest.mark.parametrize(("gamma", "steps"), [(0.9, 100_000), (0.99999, 1_000_000)])
def test_a_geometric_average_is_exact_after_a_million_steps(gamma: float, steps: int) -> None:
    pairs = random_pairs(steps)
    *_, (summary, state) = averages(GeometricAverage(ONE, decay=gamma), pairs, 100)
    beta = gamma ** np.arange(steps - 1, -1, -1, dtype=np.float64)
    exact = (beta[:, None] * pairs[0].double().numpy()).sum(axis=1) / beta.sum()
    # What γ itself loses in float32 is not the sum's doing: 1 - γ has a relative error of 2^-24 / (1 - γ).
    assert np.abs(summary[0, :, -1].numpy() - exact).max() < 1e-5
    assert all(torch.isfinite(value).all() for value in state.values())
    assert float(state["mass"]) == pytest.approx(1 / (1 - gamma), rel=1e-2)


def test_a_gated_average_is_exact_after_a_million_steps() -> None:
    steps = 1_000_000
    pairs, x = random_pairs(steps), torch.randn(1, steps, WIDTH, generator=torch.Generator().manual_seed(1))
    memory = GatedAverage(ONE)
    with torch.no_grad():
        memory.gate.weight.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
        memory.gate.bias.fill_(6.0)
    *_, (summary, state) = averages(memory, pairs, 100, x)
    weight, bias = memory.gate.weight.detach().double().numpy()[0], float(memory.gate.bias.detach())
    logits = x[0].double().numpy() @ weight + bias
    log_keep, take = -np.log1p(np.exp(-logits)), 1 / (1 + np.exp(logits))
    after = np.concatenate([np.cumsum(log_keep[:0:-1])[::-1], [0.0]])
    beta = take * np.exp(after)
    exact = (beta[:, None] * pairs[0].double().numpy()).sum(axis=1) / beta.sum()
    assert np.abs(summary[0, :, -1].numpy() - exact).max() < 1e-5
    assert float(state["mass"]) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 20])
def test_a_gate_that_keeps_all_holds_the_first_pair_and_one_that_keeps_nothing_the_newest(chunk: int) -> None:
    pairs = random_pairs(20)
    memory = GatedAverage(ONE)
    for logit, expected in ((60.0, pairs.cumsum(dim=2) / torch.arange(1, 21)[:, None]), (-60.0, pairs)):
        with torch.no_grad():
            memory.gate.weight.zero_()
            memory.gate.bias.fill_(logit)
        got = torch.cat([summary for summary, _ in averages(memory, pairs, chunk)], dim=2)
        # With every gate fully open no pair outweighs another: the average is the mean.
        assert torch.allclose(got, expected, atol=1e-6)


def test_learned_time_constants_start_on_different_scales() -> None:
    gamma = torch.sigmoid(GeometricAverage(Dims(WIDTH, 4, 4, 2)).decay_logit)
    assert (1 / (1 - gamma)).tolist() == pytest.approx([8, 32, 128, 512], rel=1e-3)


# Precision


@pytest.mark.parametrize("kind", ["moving_average", "weighted_average", "geometric", "cumulative", "gated_average"])
def test_a_half_precision_layer_still_sums_in_float32(kind: str) -> None:
    specs: Specs = [{"type": kind, **({"window": 300} if kind in RINGS else {})}, {"type": "sinks"}]
    layer = make_layer(specs, SIZES).half()
    summary = layer.memories[kind]
    assert isinstance(summary, Summary)
    seen: list[tuple[Tensor, dict[str, Tensor]]] = []

    def watched(chunk: Chunk, past: Any) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append(type(summary).summarise(summary, chunk, past))
        return seen[-1]

    summary.summarise = watched  # type: ignore[method-assign]
    output = parallel(layer, inputs(300).half())
    ((got, new),) = seen
    assert output.dtype == torch.float16
    assert got.dtype == torch.float32
    assert {new[state.name].dtype for state in summary.states()} == {torch.float16 if kind in RINGS else torch.float32}
