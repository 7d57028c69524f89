"""The largest outputs of a step, for engines that do not pick them themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgemem.runtimes.memory import Array

Top = tuple[NDArray[np.float32], NDArray[np.int64]]


def largest(values: Array, k: int) -> Top:
    """The ``k`` largest of each row, in descending order; the lower index first where values are equal.

    NaN counts as larger than any number, so that whoever looks at the first value sees it.

    Args:
        values: ``[B, V]``.
        k: 1 to ``V``.

    Returns:
        The values float32 ``[B, k]`` and their indices int64 ``[B, k]``.
    """
    if k == 1:
        first = values.argmax(1)[:, np.newaxis]
        return np.take_along_axis(values, first, 1).astype(np.float32), first.astype(np.int64)
    size = values.shape[1]
    # Sorting a large vocabulary would take longer than a step of a small model.
    thresholds = np.partition(values, size - k, axis=1)[:, size - k]
    chosen: NDArray[np.int64] = np.empty((len(values), k), np.int64)
    for row, threshold, into in zip(values, thresholds, chosen, strict=True):
        candidates = np.flatnonzero(~(row < threshold))
        found = row[candidates]
        into[...] = candidates[np.lexsort((-found, ~np.isnan(found)))[:k]]
    return np.take_along_axis(values, chosen, 1).astype(np.float32), chosen
