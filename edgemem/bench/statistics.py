"""Statistics of latency samples that claim no more than the samples support.

Latencies have long tails and machines drift, so nothing here assumes a normal distribution: percentiles, medians over
rounds, and intervals from order statistics (the sign test's interval), which hold for every continuous distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)
SAMPLES_BEYOND = 10
CONFIDENCE = 0.95
_HISTOGRAM_BINS = 60
_OUTLIER_SPREADS = 4.0
_ECDF_POINTS = 201
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Percentile:
    """One percentile; ``value_ms`` is ``None`` where fewer than ``needed_samples`` were taken."""

    percent: float
    value_ms: float | None
    needed_samples: int


@dataclass(frozen=True)
class Histogram:
    """``counts[i]`` samples between ``edges_ms[i]`` and ``edges_ms[i + 1]``; ``beyond`` samples above the last edge."""

    edges_ms: list[float]
    counts: list[int]
    beyond: int


@dataclass(frozen=True)
class Ecdf:
    """A share ``shares[i]`` of the samples is at or below ``values_ms[i]``."""

    values_ms: list[float]
    shares: list[float]


@dataclass(frozen=True)
class Distribution:
    """Latencies of ``count`` steps."""

    count: int
    min_ms: float
    mean_ms: float
    max_ms: float
    percentiles: list[Percentile]
    histogram: Histogram
    ecdf: Ecdf

    def percentile_ms(self, percent: float) -> float | None:
        """The percentile; ``None`` if there are too few samples."""
        return next((p.value_ms for p in self.percentiles if p.percent == percent), None)


@dataclass(frozen=True)
class Interval:
    """A median over ``rounds`` and the interval that holds the true one; without bounds if the rounds are too few."""

    value: float
    low: float | None
    high: float | None
    confidence: float
    rounds: int

    def over(self, divisor: float) -> Interval:
        """The interval in a unit that is ``divisor`` (> 0) times larger."""
        low, high = (None if bound is None else bound / divisor for bound in (self.low, self.high))
        return Interval(self.value / divisor, low, high, self.confidence, self.rounds)

    def inverse(self) -> Interval:
        """The interval of a ratio, with numerator and denominator exchanged."""
        low = None if self.high is None else 1 / self.high
        high = None if self.low is None else 1 / self.low
        return Interval(1 / self.value, low, high, self.confidence, self.rounds)


def median_ms(samples_ns: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """The median of samples in nanoseconds, in milliseconds."""
    return float(np.median(samples_ns)) / _NS_PER_MS


def needed_samples(percent: float) -> int:
    """Least number of samples for a percentile: :data:`SAMPLES_BEYOND` of them must lie beyond it.

    Args:
        percent: The percentile, in (0, 100).

    Returns:
        The count: 20 for p50, 1,000 for p99, 10,000 for p99.9.
    """
    # 100 - 99.9 is 0.0999…94 in floating point: round before the ceiling, or p99.9 would need 10,001.
    return math.ceil(round(SAMPLES_BEYOND * 100.0 / (100.0 - percent), 6))


def percentile(samples: NDArray[Any], percent: float) -> float | None:
    """The percentile, interpolated linearly between order statistics; ``None`` if there are too few samples.

    Args:
        samples: ``[N]``, in any order.
        percent: In (0, 100).
    """
    if samples.size < needed_samples(percent):
        return None
    return float(np.percentile(samples, percent))


def distribution(samples_ns: NDArray[np.int64]) -> Distribution:
    """Describe step latencies.

    Args:
        samples_ns: ``[N]`` latencies in nanoseconds, N ≥ 1.

    Raises:
        ValueError: There is no sample.
    """
    if samples_ns.size == 0:
        raise ValueError("a distribution needs at least one sample")
    samples_ms = np.sort(samples_ns) / _NS_PER_MS
    return Distribution(
        count=int(samples_ms.size),
        min_ms=float(samples_ms[0]),
        mean_ms=float(samples_ms.mean()),
        max_ms=float(samples_ms[-1]),
        percentiles=[Percentile(p, percentile(samples_ms, p), needed_samples(p)) for p in PERCENTS],
        histogram=_histogram(samples_ms),
        ecdf=_ecdf(samples_ms),
    )


def _histogram(sorted_ms: NDArray[np.float64]) -> Histogram:
    """Equal bins for all but a few outliers, which are only counted: one of them would flatten all bins.

    Outliers are the slowest percent, and what is farther above the 90th percentile than :data:`_OUTLIER_SPREADS` times
    its distance from the median; at most a tenth of the samples.
    """
    beyond = max(SAMPLES_BEYOND, sorted_ms.size // 100) if sorted_ms.size >= needed_samples(95.0) else 0
    low, high = float(sorted_ms[0]), float(sorted_ms[sorted_ms.size - 1 - beyond])
    if beyond:
        p50, p90 = (float(np.percentile(sorted_ms, percent)) for percent in (50.0, 90.0))
        high = min(high, p90 + _OUTLIER_SPREADS * (p90 - p50))
    if high <= low:
        high = max(low * 1.01, low + 1e-6)
    inside = sorted_ms[sorted_ms <= high]
    bins = int(min(_HISTOGRAM_BINS, max(8, inside.size // SAMPLES_BEYOND)))
    counts, edges = np.histogram(inside, bins=bins, range=(low, high))
    return Histogram([float(e) for e in edges], [int(c) for c in counts], int(sorted_ms.size - inside.size))


def _ecdf(sorted_ms: NDArray[np.float64]) -> Ecdf:
    ranks = np.unique(np.linspace(0, sorted_ms.size - 1, min(_ECDF_POINTS, sorted_ms.size)).round().astype(int))
    return Ecdf([float(sorted_ms[r]) for r in ranks], [float((r + 1) / sorted_ms.size) for r in ranks])


def median_interval(values: Sequence[float] | NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """The median and an interval that holds the true median, whatever the distribution.

    The interval runs from the k-th smallest to the k-th largest value, for the largest k at which a fair coin thrown
    n times shows fewer than k heads with a probability of at most (1 - confidence) / 2.

    Args:
        values: n independent values, n ≥ 1.
        confidence: Wanted coverage, in (0, 1).

    Returns:
        The interval; its bounds are ``None`` if n is too small (fewer than 6 for 95%).
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = int(ordered.size)
    if n == 0:
        raise ValueError("a median needs at least one value")
    tail, k = 0.0, 0
    while k < n:
        tail += math.comb(n, k) * 0.5**n
        if tail > (1.0 - confidence) / 2.0:
            break
        k += 1
    bounds = (float(ordered[k - 1]), float(ordered[n - k])) if k else (None, None)
    return Interval(float(np.median(ordered)), bounds[0], bounds[1], confidence, n)


def ratio(numerator_ns: NDArray[np.int64], denominator_ns: NDArray[np.int64] | NDArray[np.float64]) -> Interval:
    """How many times longer one contender takes than another: the median over rounds of the rounds' own ratios.

    Args:
        numerator_ns: ``[R, K]``: K steps in each of R rounds.
        denominator_ns: ``[R, K']`` of the same rounds.
    """
    if numerator_ns.shape[0] != denominator_ns.shape[0]:
        raise ValueError(
            f"ratios are paired by round: {numerator_ns.shape[0]} rounds against {denominator_ns.shape[0]}"
        )
    return median_interval(np.median(numerator_ns, axis=1) / np.median(denominator_ns, axis=1))


def difference_ns(minuend_ns: NDArray[np.int64], subtrahend_ns: NDArray[np.int64]) -> Interval:
    """How much longer one contender takes than another, paired by round as in :func:`ratio`; nanoseconds."""
    if minuend_ns.shape[0] != subtrahend_ns.shape[0]:
        raise ValueError(f"differences are paired by round: {minuend_ns.shape[0]} against {subtrahend_ns.shape[0]}")
    return median_interval(np.median(minuend_ns, axis=1) - np.median(subtrahend_ns, axis=1))


def slope_per_1000(latency_ns: Mapping[int, NDArray[np.int64]]) -> Interval:
    """How much the latency of a step grows per 1,000 positions of the stream.

    Each round measured every position, so each round gives one least-squares slope through its own medians: drift of
    the machine between rounds falls out. The median over rounds is reported.

    Args:
        latency_ns: Position → ``[R, K]`` nanoseconds: K steps in each of R rounds. At least two positions.

    Returns:
        Nanoseconds per 1,000 positions.
    """
    positions = np.array(sorted(latency_ns), dtype=np.float64)
    if positions.size < 2:
        raise ValueError(f"a slope needs two positions or more, got {positions.size}")
    medians = np.stack([np.median(latency_ns[int(p)], axis=1) for p in positions], axis=1)  # (R, P)
    centred = positions - positions.mean()
    return median_interval(medians @ centred / (centred @ centred) * 1000.0)
