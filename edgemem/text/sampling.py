"""Choosing the next token from the logits: greedy, temperature, top-k, top-p, min-p."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemem.errors import InputError, NonFiniteError

_FIRST_NUCLEUS = 256


@dataclass(frozen=True)
class Sampler:
    """Draws token ids from logits.

    The order is the usual one: temperature, top-k, top-p over the renormalised rest, min-p. Of equal probabilities the
    lower id is kept first, so that the kept set is the same on every machine. A sampler draws for one stream at a time.

    Attributes:
        temperature: Divides the logits. 0 is greedy: the most probable token, and of equals the lowest id.
        top_k: Keep the k most probable tokens; ``None`` or 0 keeps all.
        top_p: Keep the most probable tokens that together reach this probability (at least one); 1 keeps all.
        seed: Makes the draws repeatable; with ``None`` they differ each time.
        min_p: Drop the tokens less probable than this times the most probable one (Nguyen et al. 2024,
            https://arxiv.org/abs/2407.01082); 0 drops none.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    _generator: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature must be 0 (greedy) or more and finite, got {self.temperature}.")
        if self.top_k is not None and self.top_k < 0:
            raise InputError(f"top_k must be 1 or more, or 0 or None for all tokens, got {self.top_k}.")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"min_p must be from 0 to 1, got {self.min_p}.")
        if self.seed is not None and self.seed < 0:
            raise InputError(f"seed must be 0 or more, got {self.seed}.")
        object.__setattr__(self, "_generator", np.random.default_rng(self.seed))

    def __call__(self, logits: ArrayLike) -> int:
        """Draw one token id.

        Args:
            logits: ``[V]``, any real dtype. A token with ``-inf`` is never drawn.

        Raises:
            InputError: The logits are not one row of 1 or more numbers.
            NonFiniteError: They contain NaN or ``+inf``, or only ``-inf``.
        """
        ids, weights = self._candidates(logits)
        cumulative = np.cumsum(weights)
        drawn = int(np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right"))
        # The product can round up to the whole sum, which would point past the last token with a probability above 0.
        if drawn == cumulative.size:
            drawn = int(np.flatnonzero(weights)[-1])
        return drawn if ids is None else int(ids[drawn])

    def distribution(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The probabilities ``[V]`` that a draw follows; they sum to 1."""
        ids, weights = self._candidates(logits)
        chances = np.zeros(np.shape(logits))
        chances[slice(None) if ids is None else ids] = weights / weights.sum()
        return chances

    def _candidates(self, logits: ArrayLike) -> tuple[NDArray[np.intp] | None, NDArray[np.float64]]:
        """The ids that may be drawn (``None``: all), and their weights, which need not sum to 1."""
        row, largest = _row(logits)
        if self.temperature == 0:
            return np.array([np.argmax(row)]), np.ones(1)
        ids = None
        if self.top_k and self.top_k < row.size:
            ids = _largest(row, self.top_k)
            row = row[ids]
        # In the far tail exp underflows to 0, which is right; dividing by a tiny temperature may overflow to -inf.
        with np.errstate(over="ignore"):
            weights: NDArray[np.float64] = np.exp((row.astype(np.float64) - largest) / self.temperature)
        if self.top_p < 1:
            nucleus = _nucleus(weights, self.top_p * weights.sum())
            ids = nucleus if ids is None else ids[nucleus]
            weights = weights[nucleus]
        if self.min_p > 0:
            # The most probable token's weight is exp(0).
            likely = np.flatnonzero(weights >= self.min_p)
            ids = likely if ids is None else ids[likely]
            weights = weights[likely]
        return ids, weights


def _row(logits: ArrayLike) -> tuple[NDArray[Any], float]:
    """The logits as an array ``[V]``, and the largest of them."""
    row: NDArray[Any] = np.asarray(logits)
    if row.ndim != 1 or row.size == 0:
        raise InputError(f"logits must be one row [V] with at least one token, got shape {row.shape}.")
    largest = float(row.max())
    if not math.isfinite(largest):
        what = "contain NaN" if math.isnan(largest) else "contain +inf" if largest > 0 else "are all -inf"
        raise NonFiniteError(f"the logits {what}.", hint="Open the model with guard=True to find the first such step.")
    return row, largest


def _largest(values: NDArray[Any], count: int) -> NDArray[np.intp]:
    """Ids of the ``count`` largest values, in ascending order; of equal values the lower id is taken."""
    threshold = np.partition(values, values.size - count)[values.size - count]
    above = np.flatnonzero(values > threshold)
    level = np.flatnonzero(values == threshold)[: count - above.size]
    return np.sort(np.concatenate((above, level)))


def _nucleus(weights: NDArray[np.float64], mass: float) -> NDArray[np.intp]:
    """Ids of the fewest largest weights that sum to ``mass`` or more."""
    count = _FIRST_NUCLEUS
    # The nucleus is nearly always small. Sorting a large vocabulary would take longer than the rest of a step.
    while count < weights.size:
        ids = _largest(weights, count)
        if weights[ids].sum() > mass:
            break
        count *= 8
    else:
        ids = np.arange(weights.size)
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    return ids[: int(np.searchsorted(np.cumsum(weights[ids]), mass, side="left")) + 1]
