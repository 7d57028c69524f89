"""The window, the sinks and the growing cache, at their boundaries."""

from __future__ import annotations

import pytest
import torch

from edgemem.memories import Clock
from tests.memories import oracle
from tests.memories.support import TOLERANCE, error, inputs, make_layer, parallel, stream, truth

SIZES = oracle.Sizes(heads=4, kv_heads=2, head_dim=4)


def lengths(window: int) -> list[int]:
    return sorted({1, max(1, window - 1), window, window + 1, 2 * window, 2 * window + 1})


@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_is_right_at_every_boundary_of_its_ring(window: int) -> None:
    specs = [{"type": "window", "window": window}]
    layer = make_layer(specs, SIZES)
    for time in lengths(window):
        x = inputs(time, batch=2, seed=time)
        want = truth(layer, specs, SIZES, x)
        assert error(parallel(layer, x), want) < TOLERANCE
        for chunk in range(1, window + 1):
            chunks = [chunk] * (time // chunk) + [1] * (time % chunk)
            assert error(stream(layer, x, chunks)[0], want) < TOLERANCE


@pytest.mark.parametrize("chunks", [[1] * 20, [5] * 4, [3, 2] * 4])
def test_a_pair_is_seen_for_exactly_as_many_steps_as_the_window_is_long(chunks: list[int]) -> None:
    layer, x = make_layer([{"type": "window", "window": 5}], SIZES), inputs(20)
    changed = x.clone()
    changed[:, 3] += 1.0
    differs = (stream(layer, x, chunks)[0] != stream(layer, changed, chunks)[0]).any(dim=-1)[0]
    assert torch.nonzero(differs).flatten().tolist() == [3, 4, 5, 6, 7]


def test_a_window_gives_out_the_new_entries_alone() -> None:
    layer = make_layer([{"type": "window", "window": 6}], SIZES)
    state = {name: torch.zeros(2, 2, 6, 4) for name in ("window.k", "window.v")}
    _, new = layer(inputs(3, batch=2), Clock(torch.tensor([0, 9]), 3), state)
    assert {name: tuple(value.shape) for name, value in new.items()} == {
        "window.k": (2, 2, 3, 4),
        "window.v": (2, 2, 3, 4),
    }
    assert all(spec.update == "append" for spec in layer.states())


def test_what_lies_in_a_slot_that_was_never_written_is_never_read() -> None:
    layer, x = make_layer([{"type": "window", "window": 6}], SIZES), inputs(4)
    junk = {name: torch.full((1, 2, 6, 4), 1e6) for name in ("window.k", "window.v")}
    assert torch.equal(stream(layer, x, [1] * 4, state=junk)[0], stream(layer, x, [1] * 4)[0])


# Sinks


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("slots", [1, 2, 5])
def test_sinks_are_right_before_and_after_they_leave_the_window(window: int, slots: int) -> None:
    specs = [{"type": "sinks", "slots": slots}, {"type": "window", "window": window}]
    layer = make_layer(specs, SIZES)
    for time in sorted({1, slots, slots + 1, window + 1, slots + window, slots + window + 1, 30}):
        x = inputs(time)
        want = truth(layer, specs, SIZES, x)
        assert error(parallel(layer, x), want) < TOLERANCE
        assert error(stream(layer, x, [1] * time)[0], want) < TOLERANCE


def test_sinks_keep_the_first_pairs_for_ever() -> None:
    layer, x = make_layer([{"type": "sinks", "slots": 3}, {"type": "window", "window": 4}], SIZES), inputs(40)
    _, early = stream(layer, x[:, :3], [1] * 3)
    _, late = stream(layer, x, [3, 4, 1] * 5)
    assert torch.allclose(early["sinks.k"], late["sinks.k"], atol=1e-6)
    assert torch.allclose(early["sinks.v"], late["sinks.v"], atol=1e-6)


def test_no_pair_counts_twice_while_the_sinks_are_still_in_the_window() -> None:
    window = [{"type": "window", "window": 8}]
    both, alone = make_layer([*window, {"type": "sinks", "slots": 3}], SIZES), make_layer(window, SIZES)
    x = inputs(12)
    same = (parallel(both, x) - parallel(alone, x)).abs().amax(dim=-1)[0] < 1e-6
    assert same.tolist() == [True] * 8 + [False] * 4


def test_a_distance_to_a_sink_stops_growing_once_the_window_has_left_it() -> None:
    layer = make_layer([{"type": "sinks", "slots": 3}], SIZES)
    x, state = inputs(1), stream(layer, inputs(3), [3])[1]
    outputs = [stream(layer, x, [1], start, state)[0] for start in (3, 100, 10**9, 1 << 40)]
    assert all(torch.equal(outputs[0], other) for other in outputs[1:])
    assert not torch.equal(stream(layer, x, [1], 2, state)[0], outputs[0])


# The growing cache


def test_the_full_cache_equals_a_window_that_never_ends() -> None:
    full, window = make_layer([{"type": "full"}], SIZES), make_layer([{"type": "window", "window": 30}], SIZES)
    x = inputs(30)
    got, state = stream(full, x, [7, 1, 1, 21])
    assert torch.allclose(got, parallel(window, x), atol=1e-6)
    assert state["full.k"].shape == (1, 2, 30, 4)


def test_the_full_cache_says_that_it_grows() -> None:
    states = make_layer([{"type": "full"}], SIZES).states()
    assert [spec.growing_axis for spec in states] == [1, 1]
    assert [spec.nbytes_at(1000) for spec in states] == [2 * 1000 * 4 * 4] * 2
