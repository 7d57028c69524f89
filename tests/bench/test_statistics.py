"""The statistics claim no more than the samples carry."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgemem.bench import statistics

LATENCIES = arrays(np.int64, st.integers(1, 400), elements=st.integers(1, 10**9))


@pytest.mark.parametrize(("percent", "needed"), [(50.0, 20), (90.0, 100), (95.0, 200), (99.0, 1_000), (99.9, 10_000)])
def test_ten_samples_must_lie_beyond_a_percentile(percent: float, needed: int) -> None:
    assert statistics.needed_samples(percent) == needed
    samples = np.arange(needed, dtype=np.int64)
    assert statistics.percentile(samples, percent) is not None
    assert statistics.percentile(samples[1:], percent) is None


@given(LATENCIES)
def test_a_percentile_splits_the_samples_as_it_says(samples: np.ndarray) -> None:
    for percent in statistics.PERCENTS:
        value = statistics.percentile(samples, percent)
        if samples.size < statistics.needed_samples(percent):
            assert value is None
            continue
        # Brute force: interpolate between the order statistics around rank p/100 · (n - 1).
        ordered = sorted(int(s) for s in samples)
        rank = percent / 100 * (len(ordered) - 1)
        low = ordered[math.floor(rank)]
        high = ordered[math.ceil(rank)]
        assert value == pytest.approx(low + (high - low) * (rank - math.floor(rank)), rel=1e-9)


@given(LATENCIES)
def test_a_distribution_accounts_for_every_sample(samples: np.ndarray) -> None:
    made = statistics.distribution(samples)
    assert made.count == samples.size == sum(made.histogram.counts) + made.histogram.beyond
    assert len(made.histogram.edges_ms) == len(made.histogram.counts) + 1
    assert made.min_ms == samples.min() / 1e6
    assert made.max_ms == samples.max() / 1e6
    assert made.mean_ms == pytest.approx(samples.mean() / 1e6)
    assert made.ecdf.shares[-1] == 1.0
    for value, share in zip(made.ecdf.values_ms, made.ecdf.shares, strict=True):
        # With ties the share of the last of them is larger than that of the one picked.
        assert (samples / 1e6 < value).mean() <= share <= (samples / 1e6 <= value).mean() + 1e-12


def test_outliers_do_not_flatten_the_histogram() -> None:
    """Three steps of a hundred take fifty times as long: more than the slowest percent."""
    rng = np.random.default_rng(0)
    samples = (1e6 * rng.lognormal(0, 0.05, 2_000)).astype(np.int64)
    samples[::33] *= 50
    histogram = statistics.distribution(samples).histogram
    assert histogram.edges_ms[-1] < 2
    assert histogram.beyond == len(samples[::33])
    assert max(histogram.counts) < 300


@given(LATENCIES)
def test_each_bin_holds_what_lies_between_its_edges(samples: np.ndarray) -> None:
    histogram = statistics.distribution(samples).histogram
    edges = histogram.edges_ms
    in_ms = samples / 1e6
    for i, found in enumerate(histogram.counts):
        last = i == len(histogram.counts) - 1
        inside = (in_ms >= edges[i]) & ((in_ms <= edges[i + 1]) if last else (in_ms < edges[i + 1]))
        # numpy may put a sample that equals an edge up to rounding into either neighbour.
        near = np.isclose(in_ms, edges[i], rtol=1e-12) | np.isclose(in_ms, edges[i + 1], rtol=1e-12)
        assert abs(found - int(inside.sum())) <= int(near.sum())


def test_a_distribution_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        statistics.distribution(np.empty(0, dtype=np.int64))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_the_median_lies_in_its_interval_and_few_values_carry_none(values: list[float]) -> None:
    interval = statistics.median_interval(values)
    assert interval.value == float(np.median(values))
    assert interval.rounds == len(values)
    # 2 · 0.5^n is the chance that all values lie on one side of the true median.
    if 2 * 0.5 ** len(values) > 1 - interval.confidence:
        assert interval.low is None
        assert interval.high is None
    else:
        assert interval.low is not None
        assert interval.high is not None
        assert interval.low <= interval.value <= interval.high


@pytest.mark.parametrize("n", [6, 7, 15, 40])
def test_the_interval_is_the_narrowest_pair_of_order_statistics_with_the_coverage(n: int) -> None:
    interval = statistics.median_interval(list(range(n)))
    assert interval.low is not None
    k = int(interval.low) + 1  # the k-th smallest of 0, 1, 2, …

    def misses(rank: int) -> float:
        return 2 * sum(math.comb(n, i) for i in range(rank)) / 2**n

    assert misses(k) <= 0.05 < misses(k + 1)
    assert interval.high == n - k


def test_the_interval_covers_the_true_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2_000):
        # Latencies: skewed, with a long tail.
        interval = statistics.median_interval(rng.lognormal(mean=0.0, sigma=1.0, size=15))
        assert interval.low is not None
        assert interval.high is not None
        hits += interval.low <= 1.0 <= interval.high
    assert hits / 2_000 >= 0.95


@given(
    arrays(np.int64, (9, 5), elements=st.integers(1_000, 10**7)),
    st.floats(0.1, 10.0),
    arrays(np.float64, 9, elements=st.floats(0.2, 5.0)),
)
def test_drift_between_rounds_falls_out_of_a_ratio(base: np.ndarray, factor: float, drift: np.ndarray) -> None:
    slower = (base * drift[:, None]).astype(np.float64)
    interval = statistics.ratio((slower * factor), slower)
    assert interval.value == pytest.approx(factor)


def test_a_ratio_pairs_the_rounds() -> None:
    numerator = np.array([[10, 10], [40, 40], [90, 90]], dtype=np.int64)
    denominator = np.array([[5, 5], [10, 10], [30, 30]], dtype=np.int64)
    assert statistics.ratio(numerator, denominator).value == 3.0  # of 2, 4, 3
    assert statistics.difference_ns(numerator, denominator).value == 30.0  # of 5, 30, 60
    with pytest.raises(ValueError, match="3 rounds against 2"):
        statistics.ratio(numerator, denominator[:2])
    with pytest.raises(ValueError, match="paired by round"):
        statistics.difference_ns(numerator, denominator[:2])


@given(
    st.floats(-1.0, 5.0),
    st.integers(10**5, 10**7),
    arrays(np.int64, 7, elements=st.integers(0, 10**6)),
)
def test_a_slope_is_found_through_the_drift_of_the_rounds(slope: float, base: int, drift: np.ndarray) -> None:
    latency = {
        position: np.repeat((base + drift + slope * position / 1000)[:, None], 3, axis=1)
        for position in (0, 1_000, 10_000, 100_000, 1_000_000)
    }
    found = statistics.slope_per_1000(latency)
    assert found.value == pytest.approx(slope, abs=1e-4)


@given(arrays(np.float64, (6, 4), elements=st.floats(1e3, 1e6)))
def test_a_slope_is_the_least_squares_slope_of_each_round(medians: np.ndarray) -> None:
    positions = [0, 500, 2_000, 9_000]
    latency = {p: medians[:, i : i + 1] for i, p in enumerate(positions)}
    expected = np.median([np.polyfit(positions, row, 1)[0] * 1000 for row in medians])
    assert statistics.slope_per_1000(latency).value == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_position_has_no_slope() -> None:
    with pytest.raises(ValueError, match="two positions"):
        statistics.slope_per_1000({5: np.ones((3, 2), dtype=np.int64)})
