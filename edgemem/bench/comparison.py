"""Reads ratios out of interleaved samples: the bundle beside its baselines and the floor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import measure, statistics
from edgemem.bench.baselines import FLOOR, FloorReady, Ready, Skipped
from edgemem.bench.result import Baseline, Comparison, Floor, FloorMethod, Interval, PositionBytes

EDGEMEM = "edgemem"


def compare(
    prepared: Sequence[Ready | Skipped],
    floor: FloorReady | Skipped,
    samples: dict[str, NDArray[np.int64]],
    own_name: str,
    positions: Sequence[int],
) -> Comparison:
    """Read the comparison out of the interleaved samples.

    Args:
        prepared: The baselines.
        floor: The ways of reading the weights.
        samples: What :func:`~edgemem.bench.measure.interleave` measured of all of them.
        own_name: Which of the samples are the bundle's own: ``name`` or ``name@position``.
        positions: Where the growing cache's bytes are told, beside those where it was measured.
    """
    own = samples[own_name]
    position = own_name.partition("@")[2]
    growing = next((b for b in prepared if isinstance(b, Ready) and b.contract is not None), None)
    return Comparison(
        edgemem_p50_ms=median_ms(own),
        edgemem_position=int(position) if position else None,
        rounds=own.shape[0],
        steps_per_round=own.shape[1],
        baselines=[result for baseline in prepared for result in _results(baseline, samples, own)],
        floor=_floor(floor, samples, own) if isinstance(floor, FloorReady) else None,
        floor_skipped=floor.reason if isinstance(floor, Skipped) else None,
        growing=(
            measure.sweep_of("growing", samples, growing.contract, growing.positions)
            if growing is not None and growing.contract is not None and len(growing.positions) > 1
            else None
        ),
        growing_state=[
            PositionBytes(p, growing.contract.state_bytes_at(p))
            for p in sorted({*positions, *growing.positions})
            if growing.contract is not None
        ]
        if growing is not None
        else [],
    )


def median_ms(samples_ns: NDArray[np.int64] | NDArray[np.float64]) -> float:
    """The median of samples in nanoseconds."""
    return float(np.median(samples_ns)) / 1e6


def _results(
    baseline: Ready | Skipped, samples: dict[str, NDArray[np.int64]], own: NDArray[np.int64]
) -> list[Baseline]:
    if isinstance(baseline, Skipped):
        return [baseline.result()]
    results = []
    for contender in baseline.contenders:
        _, _, position = contender.name.partition("@")
        at = f" at {int(position):,}".replace(",", " ") if position else ""
        ns = samples[contender.name]
        results.append(
            Baseline(contender.name, baseline.name + at, baseline.how, median_ms(ns), statistics.ratio(ns, own))
        )
    return results


def _floor(ready: FloorReady, samples: dict[str, NDArray[np.int64]], own: NDArray[np.int64]) -> Floor:
    tried = {
        contender.name: samples[contender.name].astype(np.float64) * ready.share_of(contender.name)
        for contender in ready.contenders
    }
    fastest = min(tried, key=lambda name: float(np.median(tried[name])))
    p50_ms = median_ms(tried[fastest])
    over: Interval = statistics.ratio(own, tried[fastest])
    return Floor(
        weight_bytes=ready.reads.nbytes,
        matrices=len(ready.reads.shapes),
        counted=ready.reads.counted,
        method=fastest.removeprefix(f"{FLOOR}:"),
        methods=[
            *(FloorMethod(name.removeprefix(f"{FLOOR}:"), median_ms(ns)) for name, ns in tried.items()),
            *(FloorMethod(name, skipped=reason) for name, reason in ready.skipped.items()),
        ],
        p50_ms=p50_ms,
        gigabytes_per_second=ready.reads.nbytes / p50_ms / 1e6,
        step_over_floor=over,
    )
