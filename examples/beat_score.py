"""What counts as a heartbeat, and how well a model's reports match.

The reference beats are found with the whole recording at hand: a sample that is the highest within a third of a second
on either side, and that stands out from the second around it. They are this example's definition, not a doctor's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from recordings import RATE_HZ

DELAY = RATE_HZ // 5
"""Samples between a peak and its report."""
TOLERANCE = round(0.12 * RATE_HZ)
"""Samples by which a report may be early or late."""
SETTLE = 2 * RATE_HZ
"""Samples at the start of a stream that are not scored."""

_REACH = round(0.33 * RATE_HZ)
_AROUND = RATE_HZ


def find_beats(signal: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark the beats of a whole recording ``[N]``."""

    def around(reach: int) -> NDArray[np.float64]:
        return np.lib.stride_tricks.sliding_window_view(np.pad(signal, reach, mode="edge"), 2 * reach + 1)

    wide = around(_AROUND)
    stands_out = signal > wide.mean(axis=1) + 0.5 * wide.std(axis=1)
    peaks: NDArray[np.bool_] = (signal == around(_REACH).max(axis=1)) & stands_out
    peaks[1:] &= ~peaks[:-1]  # a flat top counts once
    return peaks


def reported(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """When the model reports a beat: at the first logit above 0, then not again for a third of a second.

    Args:
        logits: ``[N]``, one for each sample.

    Returns:
        The samples at which a report is made. The beat peaked :data:`DELAY` samples earlier.
    """
    found: list[int] = []
    for at in np.flatnonzero(logits > 0).tolist():
        if not found or at - found[-1] > _REACH:
            found.append(at)
    return np.array(found, dtype=np.int64)


@dataclass(frozen=True)
class Score:
    """How well reports match beats.

    Attributes:
        recall: Share of the beats that were reported.
        precision: Share of the reports that were beats.
    """

    recall: float
    precision: float

    @property
    def f1(self) -> float:
        """The harmonic mean of recall and precision."""
        return 2 * self.recall * self.precision / max(self.recall + self.precision, 1e-9)


def score(logits: NDArray[np.float32], beats: NDArray[np.bool_]) -> Score:
    """Compare the reports of ``logits`` ``[N]`` with ``beats`` ``[N]``, both after the first two seconds."""
    truth = np.flatnonzero(beats)
    truth = truth[(truth >= SETTLE) & (truth < len(logits) - DELAY)]
    reports = reported(logits) - DELAY
    reports = reports[reports >= SETTLE]
    if not len(truth) or not len(reports):
        return Score(0.0, 0.0)
    close = np.abs(truth[:, None] - reports) <= TOLERANCE
    return Score(float(close.any(axis=1).mean()), float(close.any(axis=0).mean()))
