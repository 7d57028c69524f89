"""Compressed memory: blocks become slots exactly when their last pair leaves the window, and leave in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memories import oracle
from tests.memories.support import TOLERANCE, Specs, chunkings, error, inputs, make_layer, parallel, stream, truth

ONE_HEAD = oracle.Sizes(heads=1, kv_heads=1, head_dim=4)


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    window=st.integers(0, 12),
    slots=st.integers(1, 4),
    rate=st.integers(2, 6),
    time=st.integers(1, 50),
)
def test_any_window_rate_and_number_of_slots_computes_the_formula_in_any_chunks(
    data: st.DataObject, window: int, slots: int, rate: int, time: int
) -> None:
    specs: Specs = [{"type": "compressed", "slots": slots, "rate": rate}]
    if window:
        specs.append({"type": "window", "window": window})
    layer, x = make_layer(specs, ONE_HEAD), inputs(time, seed=time)
    want = truth(layer, specs, ONE_HEAD, x)
    assert error(parallel(layer, x), want) < TOLERANCE
    chunks = data.draw(chunkings(time, window or time))
    assert error(stream(layer, x, chunks)[0], want) < TOLERANCE


@pytest.mark.parametrize("time", [1, 2, 3, 4, 7, 8, 9, 17])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4])
def test_it_is_right_at_every_boundary_of_window_and_block(time: int, chunk: int) -> None:
    specs: Specs = [{"type": "window", "window": 4}, {"type": "compressed", "slots": 2, "rate": 3}]
    layer, x = make_layer(specs, ONE_HEAD), inputs(time)
    chunks = [chunk] * (time // chunk) + [1] * (time % chunk)
    assert error(stream(layer, x, chunks)[0], truth(layer, specs, ONE_HEAD, x)) < TOLERANCE


def test_a_chunk_may_be_longer_than_the_whole_queue() -> None:
    specs: Specs = [{"type": "compressed", "slots": 2, "rate": 2}, {"type": "sinks"}]
    layer, x = make_layer(specs, ONE_HEAD), inputs(60)
    assert error(stream(layer, x, [3, 40, 17])[0], truth(layer, specs, ONE_HEAD, x)) < TOLERANCE


def seen_from(position: int, specs: Specs, time: int = 40) -> list[int]:
    """Time steps whose output feels a change of the input at ``position``."""
    layer, x = make_layer(specs, ONE_HEAD), inputs(time)
    changed = x.clone()
    changed[:, position] += 1.0
    differs = (stream(layer, x, [1] * time)[0] - stream(layer, changed, [1] * time)[0]).abs().amax(dim=-1)[0] > 1e-6
    return torch.nonzero(differs).flatten().tolist()


def test_a_pair_is_in_the_window_or_in_a_slot_and_then_forgotten() -> None:
    # Window 6, blocks of 3, 2 slots. Position 7 lies in block 2 (6, 7, 8): in the window until step 12, in a slot from
    # step 14, when 8 has left the window, until block 4 (12, 13, 14) pushes it out at step 20.
    specs = [{"type": "window", "window": 6}, {"type": "compressed", "slots": 2, "rate": 3}]
    assert seen_from(7, specs) == [*range(7, 13), *range(14, 20)]


def test_without_a_window_a_block_is_seen_as_soon_as_it_is_complete() -> None:
    specs = [{"type": "sinks", "slots": 1}, {"type": "compressed", "slots": 3, "rate": 4}]
    # At step 5 itself the query is another; the pair is seen from step 7, when block 1 (4 .. 7) is complete.
    assert seen_from(5, specs) == [5, *range(7, 7 + 3 * 4)]


def test_a_slot_is_the_mean_of_its_pairs() -> None:
    layer, x = make_layer([{"type": "compressed", "slots": 3, "rate": 4}], ONE_HEAD), inputs(9)
    _, state = stream(layer, x, [1] * 9)
    k, v = (x @ layer.qkv).detach()[0].tensor_split([4, 8], dim=-1)[1:]
    for b in range(2):
        want = torch.stack([k[4 * b : 4 * b + 4].mean(dim=0), v[4 * b : 4 * b + 4].mean(dim=0)])
        assert torch.allclose(state["compressed.slots"][0, :, b], want, atol=1e-6)
    assert torch.allclose(state["compressed.partial"][0, :, 0], torch.stack([k[8], v[8]]), atol=1e-6)
