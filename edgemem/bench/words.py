"""Numbers, times and intervals as text, in one style for the terminal, the page and its plots."""

from __future__ import annotations

import math

from edgemem.bench.statistics import Distribution, Interval
from edgemem.console import readable_bytes

NOT_MEASURED = "–"
_MICROSECONDS_BELOW_MS = 0.1


def number(value: float, digits: int = 3) -> str:
    """``value`` with at least that many significant digits and no exponent: ``5.31``, ``0.00420``, ``13,204``."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, decimals)
    if rounded:  # rounding may add a digit: 9.996 is 10.0, not 10.00
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}"


def count(value: int) -> str:
    """A whole number with commas between thousands: ``10,000,000``."""
    return f"{value:,}"


def ms(value: float | None) -> str:
    """A time in milliseconds, as ``0.18 ms`` or ``7.10 µs``; a dash if it was not measured."""
    if value is None:
        return NOT_MEASURED
    return f"{number(value * 1e3)} µs" if 0 < value < _MICROSECONDS_BELOW_MS else f"{number(value)} ms"


def joules(value: float | None) -> str:
    """An energy in joules, as ``52.3 mJ``; a dash if it was not measured."""
    if value is None:
        return NOT_MEASURED
    for unit, size in (("J", 1.0), ("mJ", 1e-3)):
        if abs(value) >= size:
            return f"{number(value / size)} {unit}"
    return f"{number(value * 1e6)} µJ"


def watts(value: float | None) -> str:
    """A power, as ``9.31 W``; a dash if it was not measured."""
    return NOT_MEASURED if value is None else f"{number(value)} W"


def memory(value: int | None) -> str:
    """A number of bytes, as ``2.4 MiB``; a dash if it was not measured."""
    return NOT_MEASURED if value is None else readable_bytes(value)


def times(interval: Interval) -> str:
    """A ratio, as ``1.84×``."""
    return f"{number(interval.value)}×"


def spread(interval: Interval) -> str:
    """The bounds of an interval, as ``1.80 to 1.89``; a dash if the rounds are too few."""
    if interval.low is None or interval.high is None:
        return NOT_MEASURED
    return f"{number(interval.low)} to {number(interval.high)}"


def bounds(interval: Interval) -> str:
    """The bounds of an interval with its confidence; empty if the rounds are too few."""
    return "" if interval.low is None else f"{interval.confidence:.0%} interval {spread(interval)}"


def percent_name(percent: float) -> str:
    """The name of a percentile, as ``p50`` or ``p99.9``."""
    return f"p{percent:g}"


def percentile_rows(latency: Distribution) -> list[tuple[str, ...]]:
    """Rows of a table: the percentiles, then the longest, mean and shortest latency."""
    rows = [
        (
            percent_name(p.percent),
            ms(p.value_ms),
            "" if p.value_ms is not None else f"needs {count(p.needed_samples)} samples",
        )
        for p in latency.percentiles
    ]
    return [*rows, ("max", ms(latency.max_ms), ""), ("mean", ms(latency.mean_ms), ""), ("min", ms(latency.min_ms), "")]
