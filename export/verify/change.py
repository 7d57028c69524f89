"""How far reduced precision may move the outputs, and how far it does.

Two questions are kept apart. Does the graph compute what the model computes *with the weights that the bundle stores*?
That is checked as for float32, with :func:`rounding_tolerance`. And how far are the outputs, as a user gets them, from
those of the float32 model? That is :func:`change`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from edgemem.precision import Precision

_ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
_DTYPE_CHANGE = {"float32": 0.0, "float16": 0.01, "bfloat16": 0.05}
_WEIGHTS_CHANGE = {None: 0.0, "int8": 0.03, "int4": 0.3}


def rounding_tolerance(precision: Precision) -> float:
    """Largest difference allowed between the graph's outputs and a float32 reference with the bundle's own weights.

    In the scale of ``1 + |output|``.
    """
    return _ROUNDING[precision.dtype]


def change_tolerance(precision: Precision) -> float:
    """Largest change of the outputs that is allowed against the float32 model, see :func:`change`."""
    return _DTYPE_CHANGE[precision.dtype] + _WEIGHTS_CHANGE[precision.weights]


def change(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Root mean square of ``got - wanted`` as a share of the standard deviation of ``wanted``, both ``[B, S, ...]``."""
    # Step by step: logits of a large vocabulary need much memory, and float64 copies of them twice as much.
    mean = sum(float(w.sum(dtype=np.float64)) for w in wanted.swapaxes(0, 1)) / wanted.size
    error = spread = 0.0
    for g, w in zip(got.swapaxes(0, 1), wanted.swapaxes(0, 1), strict=True):
        wide = w.astype(np.float64)
        error += float(((g - wide) ** 2).sum())
        spread += float(((wide - mean) ** 2).sum())
    return math.sqrt(error / wanted.size) / max(math.sqrt(spread / wanted.size), 1e-12)
