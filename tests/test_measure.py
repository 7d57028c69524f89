"""An error is a share of what its channel varies by, and digits that a dtype does not have are no error."""

from __future__ import annotations

import numpy as np
import pytest

from edgemem.measure import Constancy, Measure

GENERATOR = np.random.default_rng(0)
VALUES = GENERATOR.standard_normal((2, 50, 1, 3)).astype(np.float32)


def worst(wanted, got, precise=None, tolerance=1e-4, dtype="float32"):
    measure = Measure({"y": wanted}, tolerance, lambda: None if precise is None else {"y": precise}, dtype)
    return float(measure.error("y", got).max())


@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1.0, 1e8])
def test_the_scale_of_a_channel_does_not_matter(scale):
    wanted = VALUES * np.float32(scale)
    assert worst(wanted, wanted * np.float32(1.01)) == pytest.approx(
        0.01 * np.abs(VALUES / VALUES.std((0, 1, 2))).max(), rel=0.05
    )


def test_a_small_channel_is_not_lost_beside_a_large_one():
    wanted = VALUES * np.array([1.0, 1e-9, 1e9], np.float32)
    got = wanted.copy()
    got[..., 1] = 0
    assert worst(wanted, got) > 1


def test_each_step_has_its_error():
    got = VALUES.copy()
    got[1, 7] += 1
    error = Measure({"y": VALUES}, 1e-4, lambda: None).error("y", got)
    assert np.flatnonzero(error > 1e-4).tolist() == [7]
    error = Measure({"y": VALUES}, 1e-4, lambda: None).error("y", got[:, 5:9], slice(5, 9))
    assert np.flatnonzero(error > 1e-4).tolist() == [2]


def test_an_offset_is_allowed_the_last_digits_of_its_dtype():
    wanted = VALUES * np.float32(1e-3) + 1000
    assert worst(wanted, np.nextafter(wanted, np.inf, dtype=np.float32)) <= 1e-4
    assert worst(wanted, wanted + np.float32(1e-3)) > 1e-4
    half = wanted.astype(np.float16).astype(np.float32)
    assert worst(wanted, half) > 1e-4
    assert worst(wanted, half, dtype="float16") <= 1e-4


def test_eight_times_the_error_that_torch_makes_itself_is_allowed():
    precise = VALUES.astype(np.float64) + 1e-3
    assert worst(VALUES, VALUES - np.float32(7e-3), precise) <= 1e-4
    assert worst(VALUES, VALUES - np.float32(9e-3), precise) > 1e-4


def test_float64_is_computed_only_where_the_spread_does_not_suffice():
    def fail():
        raise AssertionError("not needed")

    assert Measure({"y": VALUES}, 1e-4, fail).error("y", VALUES + np.float32(1e-6)).max() <= 1e-4


def test_a_constant_channel_must_be_hit():
    wanted = np.zeros((1, 4, 1, 2), np.float32)
    assert worst(wanted, wanted) == 0
    assert worst(wanted, wanted + np.float32(1e-30)) == np.inf


def test_whole_numbers_and_flags_are_exact():
    wanted = np.full((1, 4, 1), 10**12)
    assert worst(wanted, wanted) == 0
    assert worst(wanted, wanted + 1) == np.inf
    assert worst(wanted > 0, wanted < 0) == np.inf


def test_nan_is_an_error_and_equal_infinities_are_none():
    got = VALUES.copy()
    got[0, 3, 0, 1] = np.nan
    assert not worst(VALUES, got) <= 1e-4
    wanted = VALUES.copy()
    wanted[:, 2] = -np.inf
    assert worst(wanted, wanted) == 0
    assert not worst(wanted, VALUES) <= 1e-4


def test_a_constant_output_is_told_from_one_that_varies():
    zeros = Constancy().add(np.zeros((2, 5, 1, 3), np.float32))
    assert zeros.is_constant
    assert not zeros.varies
    moved = zeros.add(VALUES * np.float32(1e-12))
    assert not moved.is_constant
    assert moved.varies
    ones = np.ones((1, 3, 1, 1), np.float32)
    flickering = Constancy().add(ones).add(np.nextafter(ones, 2, dtype=np.float32))
    assert not flickering.is_constant
    assert not flickering.varies, "one unit in the last place is rounding"
