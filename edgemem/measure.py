"""The measure of an error: a share of what the channel varies by.

A channel is one element of an output's item shape, over all steps and streams. Its error may be

    max(tolerance * spread, 8 * rounding)

``spread`` is the channel's standard deviation. ``rounding`` is the error of torch's own float32 pass against the same
module in float64 (:mod:`edgemem.export.verify.widened`), and at least half a unit in the last place of the channel's
largest value: no graph can be closer. So an output of 2e-5 is held as tightly as one of 2, and an offset of 1,000 does
not fail a model for digits that its dtype does not have.

Reduced precision raises two questions, which are kept apart. Does the graph compute what the model computes *with the
weights that the bundle stores*? That is measured as for float32, with :func:`rounding_tolerance`. And how far are the
outputs, as a user gets them, from those of the float32 model? That is :func:`change`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from edgemem.precision import Precision

Array = np.ndarray[Any, Any]

_DTYPE_CHANGE = {"float32": 0.0, "float16": 0.01, "bfloat16": 0.05, "int8": 0.03}
_EXACT = 1e-4
_WORST = 4
"""The largest of many thousand rounding errors is about this many times their root mean square."""
_WEIGHTS_CHANGE = {None: 0.0, "int8": 0.03, "int4": 0.3}
ROUNDINGS = 8
_HALF_UNIT = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Half a unit in the last place of 1, or more: relative rounding error of one operation."""


class Measure:
    """How far the outputs of a call or a stream are from what is wanted.

    Args:
        wanted: Values by name ``[B, S, items, *item_shape]``; the first three axes are no channels.
        tolerance: Largest error allowed, as a share of a channel's spread.
        precise: Gives the same values computed in float64, or ``None``. It is called only when a tolerance is exceeded.
        dtype: The dtype that the graph computes in.
        near: A measure of similar values: its spreads and roundings hold where they are larger.
    """

    def __init__(
        self,
        wanted: Mapping[str, Array],
        tolerance: float,
        precise: Callable[[], Mapping[str, Array] | None],
        dtype: str = "float32",
        near: Measure | None = None,
    ) -> None:
        self.wanted = wanted
        self.tolerance = tolerance
        self._precise = precise
        self._half_unit = _HALF_UNIT[dtype]
        self._near = near

    def error(self, name: str, got: Array, where: slice = slice(None)) -> Array:
        """Largest error at each step, in the unit in which the tolerance is the limit: float64 ``[S]``.

        Args:
            name: Of the output.
            got: Its values ``[B, S, items, *item_shape]``.
            where: Which steps of the wanted values they are.
        """
        wanted = self.wanted[name][:, where]
        if wanted.dtype.kind != "f":  # whole numbers and flags are exact
            return np.asarray(np.where(_worst(got != wanted), np.inf, 0.0))
        distance = _distance(got, wanted)
        scale = self.spread(name)
        found = _worst(_share(distance, scale))
        if not (found <= self.tolerance).all():
            found = _worst(_share(distance, np.maximum(scale, ROUNDINGS * self.rounding(name) / self.tolerance)))
        return found

    def spread(self, name: str) -> Array:
        """Standard deviation of each channel, float64 ``[*item_shape]``."""
        found = self._spreads.get(name, np.zeros(()))
        return found if self._near is None else np.maximum(found, self._near.spread(name))

    def rounding(self, name: str) -> Array:
        """Error that torch's float32 pass makes itself, float64 ``[*item_shape]``."""
        found = self._roundings.get(name, np.zeros(()))
        return found if self._near is None else np.maximum(found, self._near.rounding(name))

    @cached_property
    def _spreads(self) -> dict[str, Array]:
        return {name: _spread(value) for name, value in self.wanted.items() if value.dtype.kind == "f"}

    @cached_property
    def _roundings(self) -> dict[str, Array]:
        precise, found = self._precise() or self.wanted, {}
        for name, wanted in self.wanted.items():
            if wanted.dtype.kind == "f":
                smallest = self._half_unit * np.abs(_finite(wanted)).max(axis=(0, 1, 2)).astype(np.float64)
                found[name] = np.maximum(_distance(wanted, precise[name]).max(axis=(0, 1, 2)), smallest)
        return found


class Constancy:
    """Whether an output keeps one value over all steps and streams, fed part by part.

    Args:
        values: The values ``[B, S, items, *item_shape]`` in all.
    """

    def __init__(self) -> None:
        self._lowest: Array | None = None
        self._highest: Array | None = None

    def add(self, values: Array) -> Constancy:
        """Look at more steps."""
        low, high = values.min(axis=(0, 1, 2)), values.max(axis=(0, 1, 2))
        self._lowest = low if self._lowest is None else np.minimum(self._lowest, low)
        self._highest = high if self._highest is None else np.maximum(self._highest, high)
        return self

    @property
    def is_constant(self) -> bool:
        """Every channel has one value."""
        return self._lowest is None or self._highest is None or np.array_equal(self._lowest, self._highest)

    @property
    def varies(self) -> bool:
        """Some channel moves by more than the rounding of its values."""
        if self._lowest is None or self._lowest.dtype.kind != "f":
            return not self.is_constant
        low, high = self._lowest.astype(np.float64), np.asarray(self._highest, np.float64)
        largest = np.maximum(np.abs(low), np.abs(high))
        return bool((high - low > 2 * ROUNDINGS * _HALF_UNIT["float32"] * largest).any())


def rounding_tolerance(precision: Precision) -> float:
    """Largest difference allowed between the graph's outputs and a float32 reference with the bundle's own weights.

    As a share of a channel's spread.
    """
    return max(_EXACT, _WORST * max(_DTYPE_CHANGE[dtype] for dtype in _dtypes(precision)))


def change_tolerance(precision: Precision) -> float:
    """Largest change of the outputs that is allowed against the float32 model, see :func:`change`."""
    return max(_DTYPE_CHANGE[dtype] for dtype in _dtypes(precision)) + _WEIGHTS_CHANGE[precision.weights]


def _dtypes(precision: Precision) -> list[str]:
    """What is rounded to: by products, and in rings."""
    return [precision.dtype, precision.memory or precision.dtype]


class Change:
    """How far outputs are from those of the float32 model, fed part by part."""

    def __init__(self) -> None:
        self._count = 0
        self._error = self._sum = self._square = self._near = 0.0

    def add(self, got: Array, wanted: Array) -> Change:
        """Look at more values, of one shape."""
        wide = wanted.astype(np.float64)
        if not self._count:
            self._near = float(wide.mean())  # sums of squares around it keep their digits
        self._count += wide.size
        self._error += float(((got - wide) ** 2).sum())
        self._sum += float((wide - self._near).sum())
        self._square += float(((wide - self._near) ** 2).sum())
        return self

    @property
    def share(self) -> float:
        """Root mean square of ``got - wanted`` as a share of the standard deviation of ``wanted``."""
        if not self._count:
            return 0.0
        variance = self._square / self._count - (self._sum / self._count) ** 2
        return math.sqrt(self._error / self._count) / max(math.sqrt(max(variance, 0.0)), 1e-12)


def change(got: Array, wanted: Array) -> float:
    """:attr:`Change.share` of ``[B, S, ...]``."""
    found = Change()
    # Step by step: logits of a large vocabulary need much memory, and float64 copies of them twice as much.
    for g, w in zip(got.swapaxes(0, 1), wanted.swapaxes(0, 1), strict=True):
        found.add(g, w)
    return found.share


def _spread(values: Array) -> Array:
    """Standard deviation of each channel, a step at a time: float64 copies of a large vocabulary are large."""
    count = values.size // max(1, math.prod(values.shape[3:]))
    steps = _finite(values).swapaxes(0, 1)
    mean = np.asarray(sum(step.sum(axis=(0, 1), dtype=np.float64) for step in steps) / count)
    square = np.asarray(sum(((step - mean) ** 2).sum(axis=(0, 1)) for step in steps) / count)
    return np.asarray(np.sqrt(square))


def _finite(values: Array) -> Array:
    return values if np.isfinite(values).all() else np.where(np.isfinite(values), values, 0)


def _distance(one: Array, other: Array) -> Array:
    """``|one - other|`` in float64; equal infinities are 0 apart."""
    with np.errstate(invalid="ignore"):
        found = np.abs(one.astype(np.float64) - other)
    return found if np.isfinite(found).all() else np.where(one == other, 0.0, found)


def _share(distance: Array, scale: Array) -> Array:
    """``distance / scale``; where the scale is 0, only no distance at all is within it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0, 0.0, distance / scale)


def _worst(values: Array) -> Array:
    """The largest of each step, ``[S]``."""
    return np.asarray(values.reshape(values.shape[0], values.shape[1], -1).max(axis=(0, 2)))
