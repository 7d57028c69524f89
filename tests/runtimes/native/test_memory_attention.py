"""``edgemem::MemoryAttention`` computes the formulas, for every list, shape and position."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtimes.native.calls import calls, make_call, rotary_phases
from tests.runtimes.native.operators import attend
from tests.runtimes.native.oracle import Call, memory_attention

TOLERANCE = 5e-6
"""Largest error over the largest wanted number."""
EVERYTHING = ["window", "sinks", "cumulative:log_count", "geometric"]


def hold(call: Call, got, tolerance: float = TOLERANCE) -> None:
    for name, want in memory_attention(call).items():
        have = got[name].astype(np.float64)
        if name.endswith("mean"):
            have = have + got[name.replace("mean", "carry")]
        assert have.shape == want.shape, name
        assert np.abs(have - want).max(initial=0) <= tolerance * max(1.0, np.abs(want).max(initial=0)), name


@settings(deadline=None, max_examples=60)
@given(calls(), st.booleans(), st.sampled_from([1, 2]))
def test_it_computes_the_formulas(call, heads_first, threads):
    hold(call, attend(call, heads_first, threads))


@pytest.mark.parametrize("time", [1, 3, 40, 110])
def test_the_window_wraps(time):
    for position in (0, 1, 99, 100, 101, 1_000_003) if time < 100 else (99, 137):
        hold(*_run(make_call(["window"], position=[position], time=time, width=16, window=100)))


def test_a_long_chunk_of_grouped_heads():
    hold(*_run(make_call(EVERYTHING, position=[3, 5000], time=70, groups=4, width=64, window=600)))


def test_queries_and_keys_that_come_rotated():
    call = replace(make_call(["window", "sinks"], position=[30], time=5), phases=None)
    hold(call, attend(call, heads_first=True))


@pytest.mark.parametrize("given", ["plain", "rotated", "tables"])
@pytest.mark.parametrize("time", [1, 40])
def test_every_memory_reads_what_it_needs_however_queries_and_keys_come(given, time):
    """Sinks have positions by slot and summaries none: the operator turns what comes rotated."""
    memories = ["window", "sinks", "cumulative", "moving_average", "compressed:3:2", "geometric"]
    for options in ({}, {"by_slot": False}, {"phases": rotary_phases(8)}):
        call = make_call(memories, position=[900, 2**40], time=time, width=24, groups=2, given=given, **options)
        hold(call, attend(call))
    if given != "tables":
        part = {"phases": -rotary_phases(6), "rotary_start": 5, "neighbours": True}
        call = make_call(memories, position=[900, 3], time=time, width=24, groups=2, given=given, **part)
        hold(call, attend(call))


def test_values_may_be_wider_than_keys():
    call = make_call(["window"], position=[30, 2], time=5, width=16)
    wide = {
        "v": np.repeat(call.v, 3, axis=3),
        "states": {**call.states, "0.v": np.repeat(call.states["0.v"], 3, axis=3)},
    }
    call = replace(call, **wide)
    hold(call, attend(call, heads_first=True))


@pytest.mark.parametrize("time", [1, 9])
def test_a_row_of_a_batch_is_bit_equal_to_the_row_alone(time):
    call = make_call(EVERYTHING, position=[0, 7, 5000, 2**41], time=time, groups=3, width=24, window=9, kv_heads=2)
    together = attend(call)
    for row in range(4):
        parts = {name: value[row : row + 1] for name, value in call.states.items()}
        one = {name: getattr(call, name)[row : row + 1] for name in ("q", "k", "v", "position")}
        for name, value in attend(replace(call, states=parts, **one)).items():
            np.testing.assert_array_equal(value, together[name][row : row + 1], err_msg=name)


def test_threads_change_no_bit():
    call = make_call(EVERYTHING, position=[300, 20], time=20, groups=2, width=64, window=256, kv_heads=4)
    one, two = attend(call, threads=1), attend(call, threads=2)
    for name, value in one.items():
        np.testing.assert_array_equal(value, two[name], err_msg=name)


def test_what_is_masked_is_not_read():
    call = make_call(["window", "sinks"], position=[3], window=8, width=16)
    call.states["0.k"][:, :, 3:] = np.nan
    call.states["0.v"][:, :, 3:] = np.nan
    call.states["1.v"][:] = np.inf
    assert np.isfinite(attend(call)["read"]).all()


def test_a_nan_that_is_seen_is_passed_on():
    call = make_call(["window"], position=[5], window=8, width=16)
    call.states["0.k"][:, :, 2, 3] = np.nan
    assert np.isnan(attend(call)["read"]).all()


def test_an_empty_batch_and_an_empty_chunk():
    call = make_call(EVERYTHING, position=[5], time=2)
    states = {name: value[:0] for name, value in call.states.items()}
    nobody = replace(call, q=call.q[:0], k=call.k[:0], v=call.v[:0], position=call.position[:0], states=states)
    assert attend(nobody)["read"].shape == (0, 2, 8)
    nothing = replace(call, q=call.q[:, :, :0], k=call.k[:, :, :0], v=call.v[:, :, :0])
    got = attend(nothing)
    assert got["read"].shape == (1, 0, 8)
    np.testing.assert_array_equal(got["2.mean"], call.states["2.mean"])


def _run(call: Call):
    return call, attend(call)
