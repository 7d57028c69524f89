"""Positions, ring ages, masks and rotary phases are exact at any position."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.memories import Clock
from edgemem.memories.clock import PHASE_STEPS, rotate
from tests.memories.oracle import rotary_angles, rotated

POSITIONS = [0, 1, 1000, 10**7, (1 << 24) + 1, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, 10**12, (1 << 62) + 12345]

starts = st.integers(0, 40) | st.sampled_from([(1 << 24) - 1, 1 << 24, (1 << 31) - 1, 1 << 31, 1 << 40])


def clock_at(*positions: int, time: int = 1) -> Clock:
    return Clock(torch.tensor(positions), time)


@settings(max_examples=40, deadline=None)
@given(start=st.lists(starts, min_size=1, max_size=3), window=st.integers(1, 9), time=st.integers(1, 9))
def test_a_ring_slot_is_live_while_the_entry_it_holds_is_in_the_window(
    start: list[int], window: int, time: int
) -> None:
    live = clock_at(*start, time=time).ring_live(window)
    age = clock_at(*start, time=time).ring_age(window)
    for row, position in enumerate(start):
        for slot in range(window):
            holds = [j for j in range(max(0, position - window), position) if j % window == slot]
            assert len(holds) <= 1
            if holds:
                assert int(age[row, slot]) == position - 1 - holds[0]
            for t in range(time):
                assert bool(live[row, 0, t, slot]) == bool(holds and position + t - holds[0] < window)


@settings(max_examples=30, deadline=None)
@given(window=st.none() | st.integers(1, 9), time=st.integers(1, 12))
def test_a_query_sees_itself_and_what_came_before_it_in_the_window(window: int | None, time: int) -> None:
    live = clock_at(5, time=time).chunk_live(window)[0, 0]
    for t in range(time):
        seen = range(0 if window is None else max(0, t - window + 1), t + 1)
        assert torch.nonzero(live[t]).flatten().tolist() == list(seen)


def test_positions_are_counted_in_int64_for_every_stream_by_itself() -> None:
    clock = clock_at((1 << 24) + 1, 3, 1 << 40, time=3)
    assert clock.positions.dtype == torch.int64
    assert clock.positions[0].tolist() == [(1 << 24) + 1, (1 << 24) + 2, (1 << 24) + 3]
    assert clock.positions[2, 2] == (1 << 40) + 2
    assert clock.counts()[1].flatten().tolist() == [4.0, 5.0, 6.0]


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 50) | st.just(1 << 33), time=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_running_mean_is_a_step_from_the_mean_so_far(start: int, time: int, seed: int) -> None:
    mean, *x = np.random.default_rng(seed).normal(size=time + 1).astype(np.float32).tolist()
    steps = clock_at(start, time=time).running_mean()[0, 0] @ torch.tensor([mean, 0.0, *x])
    for t in range(time):
        want = (start * mean + math.fsum(x[: t + 1])) / (start + t + 1) - mean
        assert float(steps[t]) == pytest.approx(want, rel=1e-5, abs=1e-6 / (start + 1))


def test_what_a_clock_derives_is_made_once() -> None:
    clock, made = clock_at(0), []
    for key in ("a", "b", "a", "a"):
        clock.once(key, lambda: made.append(1))
    assert len(made) == 2
    assert clock.ring_live(4) is clock.ring_live(4)
    assert clock.ring_live(4) is not clock.ring_live(5)


# Rotary


@pytest.mark.parametrize("head_dim", [2, 8, 64])
@pytest.mark.parametrize("theta", [10000.0, 1e6, 10.0])
def test_rotary_angles_equal_exact_arithmetic_at_every_position(head_dim: int, theta: float) -> None:
    clock = clock_at(*POSITIONS)
    cos, sin = clock.rotary(clock.positions, "here", head_dim, theta)
    assert cos.shape == sin.shape == (len(POSITIONS), 1, 1, head_dim)
    for row, position in enumerate(POSITIONS):
        angle = rotary_angles(position, head_dim, theta)
        got_cos, got_sin = cos[row, 0, 0].double().numpy(), sin[row, 0, 0].double().numpy()
        np.testing.assert_allclose(got_cos, np.tile(np.cos(angle), 2), atol=4e-7, rtol=0)
        np.testing.assert_allclose(got_sin, np.concatenate([-np.sin(angle), np.sin(angle)]), atol=4e-7, rtol=0)


def test_a_float32_angle_would_be_noise_where_the_integer_phase_is_exact() -> None:
    position = 10**7 + 7
    exact = rotary_angles(position, 64, 10000.0)
    naive = np.float32(position) * rotary_angles(1, 64, 10000.0).astype(np.float32)
    clock = clock_at(position)
    cos = clock.rotary(clock.positions, "here", 64, 10000.0)[0][0, 0, 0, :32].numpy()
    assert np.abs(np.cos(naive) - np.cos(exact)).max() > 0.05
    assert np.abs(cos - np.cos(exact)).max() < 4e-7


@pytest.mark.parametrize("head_dim", [4, 64])
def test_the_frequencies_are_those_of_roformer_to_half_a_phase_step(head_dim: int) -> None:
    for f in range(head_dim // 2):
        turn = 10000.0 ** (-2 * f / head_dim) / (2 * math.pi)
        parts = rotary_angles(1, head_dim, 10000.0)[f] / (2 * math.pi) * PHASE_STEPS
        assert abs(parts - turn * PHASE_STEPS) <= 0.5 + 1e-6


@settings(max_examples=30, deadline=None)
@given(
    start=st.integers(0, 10**13) | st.sampled_from(POSITIONS),
    distance=st.integers(0, 5000),
    seed=st.integers(0, 999),
)
def test_a_score_depends_on_the_distance_alone(start: int, distance: int, seed: int) -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(seed))

    def score(base: int) -> float:
        clock = clock_at(base)
        query = rotate(q, *clock.rotary(clock.positions + distance, "query", 8, 10000.0))
        return float((query * rotate(k, *clock.rotary(clock.positions, "key", 8, 10000.0))).sum())

    exact = rotated(q.double().numpy().ravel(), distance, 10000.0) @ k.double().numpy().ravel()
    assert score(start) == pytest.approx(exact, abs=5e-6)
    assert score(start) == pytest.approx(score(0), abs=5e-6)


@settings(max_examples=20, deadline=None)
@given(position=st.integers(0, 1 << 40), half=st.integers(1, 8), seed=st.integers(0, 999))
def test_rotation_turns_the_pairs_f_and_f_plus_half_and_keeps_lengths(position: int, half: int, seed: int) -> None:
    x = torch.randn(1, 2, 1, 2 * half, generator=torch.Generator().manual_seed(seed))
    clock = clock_at(position)
    got = rotate(x, *clock.rotary(clock.positions, "here", 2 * half, 10000.0))
    np.testing.assert_allclose(got.numpy(), rotated(x.double().numpy(), position, 10000.0), atol=2e-6)
    assert torch.allclose(
        got[..., :half] ** 2 + got[..., half:] ** 2, x[..., :half] ** 2 + x[..., half:] ** 2, atol=1e-5
    )
    assert rotate(x.half(), *clock.rotary(clock.positions, "here", 2 * half, 10000.0)).dtype == torch.float16
