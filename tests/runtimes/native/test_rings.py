"""Rings of half precision, and of integers with a scale for each slot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from tests.runtimes.native.calls import calls, make_call
from tests.runtimes.native.operators import attend
from tests.runtimes.native.test_memory_attention import hold


@settings(deadline=None, max_examples=30)
@given(calls(np.float16, halves=True, phases=None))
def test_half_precision_is_as_exact_as_float32_where_the_entries_are_halves(call):
    hold(call, attend(call, heads_first=True))


@settings(deadline=None, max_examples=10)
@given(calls(np.float16))
def test_half_precision(call):
    hold(call, attend(call), tolerance=2e-3)


@settings(deadline=None, max_examples=30)
@given(calls(np.int8, phases=None))
def test_integers(call):
    hold(call, attend(call, heads_first=True))


@settings(deadline=None, max_examples=10)
@given(calls(np.int8).filter(lambda call: call.window))
def test_integers_of_rotated_keys(call):  # a rounding of a key may fall on the other side
    got = attend(call)
    assert np.abs(got["0.k"].astype(np.int32)).max(initial=0) <= 127
    scales = {name: got[name] for name in ("0.k_scale", "0.v_scale")}
    hold(call, {**got, "0.k": np.rint(got["0.k"]), **scales}, tolerance=2e-2)


SPECIAL = [0.0, -0.0, 1e-9, 2.0**-25, 2.0**-24, 3 * 2.0**-25, 6.1e-5, 2.0**-14, 1 + 2.0**-11, 1 + 3 * 2.0**-11]
SPECIAL += [2049.0, 2051.0, 65504.0, 65519.0, 65520.0, 1e9, -65519.9, np.inf, -np.inf, np.nan]


def test_every_float_becomes_the_half_that_numpy_makes_of_it():
    random = np.random.default_rng(0)
    bits = np.concatenate([random.integers(0, 1 << 32, 4000, dtype=np.uint32).view(np.float32), np.float32(SPECIAL)])
    call = make_call(["window"], position=[5], width=4, time=len(bits) // 4, ring=np.float16)
    v = np.concatenate([bits, np.zeros(-len(bits) % 4, np.float32)])[: call.v.size].reshape(call.v.shape)
    with np.errstate(over="ignore"):
        want = v.astype(np.float16)
    np.testing.assert_array_equal(attend(replace(call, v=v))["0.v"], want)


@pytest.mark.parametrize("level", ["avx512", "avx2", "sse2", "neon"])
def test_every_half_is_read_as_numpy_reads_it(level, monkeypatch):
    from edgemem.runtimes import native

    monkeypatch.setenv("EDGEMEM_NATIVE_LEVEL", level)
    if not native.look(native.library()).level:
        pytest.skip(f"this processor has no {level}")
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1, 1, 512)
    call = make_call(["window"], position=[1] * len(halves), width=512, window=2, ring=np.float16)
    call.states["0.v"][:, :, :1] = halves
    # The query sees slot 0 and itself; the own key is so much worse that only slot 0 counts.
    q, k = np.full_like(call.q, 10), np.full_like(call.k, -60)
    call.states["0.k"][:] = 0
    read = attend(replace(call, q=q, k=k, v=np.zeros_like(call.v), phases=None), heads_first=True)["read"]
    np.testing.assert_array_equal(read.reshape(-1), halves.reshape(-1).astype(np.float32))


def test_a_slot_that_is_not_finite_is_read_as_nan():
    for value in (np.nan, np.inf):
        call = make_call(["window"], position=[5], width=8, ring=np.int8)
        call.v[0, 0, 0, 3] = value
        got = attend(call)
        assert np.isnan(got["0.v_scale"]).all()
        assert np.isnan(got["read"]).all()


def test_a_slot_of_zeros_has_scale_zero():
    call = make_call(["window"], position=[5], width=8, ring=np.int8)
    call.v[:] = 0
    got = attend(call)
    np.testing.assert_array_equal(got["0.v_scale"], 0)
    np.testing.assert_array_equal(got["0.v"], 0)
    assert np.isfinite(got["read"]).all()


@pytest.mark.parametrize("ring", [np.float16, np.int8])
@pytest.mark.parametrize("time", [1, 20])
def test_a_row_of_a_batch_is_bit_equal_to_the_row_alone(ring, time):
    call = make_call(["window", "sinks"], position=[0, 7, 5000], time=time, groups=3, width=24, window=9, ring=ring)
    together = attend(call)
    for row in range(3):
        parts = {name: value[row : row + 1] for name, value in call.states.items()}
        one = {name: getattr(call, name)[row : row + 1] for name in ("q", "k", "v", "position")}
        for name, value in attend(replace(call, states=parts, **one)).items():
            np.testing.assert_array_equal(value, together[name][row : row + 1], err_msg=name)
