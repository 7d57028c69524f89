"""Sequences of the synthetic tasks, drawn anew for every step. A target of :data:`SILENT` is not asked for."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

KEYS, VALUES, NOISES = 128, 32, 15
_VALUE, _NOISE, _ASK = KEYS, KEYS + VALUES, KEYS + VALUES + NOISES
_ANSWER = _ASK + 1
"""Values are answered with tokens of their own. Where they are the tokens that were read, full attention learned too
slowly: input and output share their embedding."""
VOCABULARY = _ANSWER + VALUES
SILENT = -100
PAIRS = 8
"""Pairs of a sequence of :func:`recall`."""
COPIED, SCATTERED = 4, 28
"""Tokens that :func:`copying` asks for, and the length of what they are scattered over."""

Sequences = tuple[Tensor, Tensor]
"""Tokens and targets, int64 ``[B, T]`` each."""


def recall(distance: int, batch: int, generator: Generator, pairs: int = PAIRS) -> Sequences:
    """Multi-query associative recall (Arora et al. 2023): pairs, then noise, then every key again in another order.

    ``k1 v1 k2 v2 … noise q1 q2 …``, at most :data:`KEYS` pairs, no key twice. At each query the value of its key is
    wanted. The first query is ``distance`` steps after the last pair; at a distance of 1 there is no noise.
    """
    given, queries, values = _pairs(pairs, batch, generator)
    noise = _noise(batch, distance - 1, generator)
    return _ask_after(torch.cat([given, noise], dim=1), queries, values)


def copying(batch: int, generator: Generator, copied: int = COPIED) -> Sequences:
    """Selective copying (Gu and Dao 2023): values scattered over noise, to be given back in their order."""
    values = torch.rand(batch, VALUES, generator=generator).argsort(dim=1)[:, :copied] + _VALUE
    places = torch.rand(batch, SCATTERED, generator=generator).argsort(dim=1)[:, :copied].sort(dim=1).values
    given = _noise(batch, SCATTERED, generator).scatter(1, places, values)
    return _ask_after(given, torch.full((batch, copied), _ASK), values)


def _pairs(pairs: int, batch: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs ``[B, 2n]``, their keys in another order ``[B, n]``, and the values of those."""
    keys = torch.rand(batch, KEYS, generator=generator).argsort(dim=1)[:, :pairs]
    values = torch.randint(VALUES, (batch, pairs), generator=generator) + _VALUE
    order = torch.rand(batch, pairs, generator=generator).argsort(dim=1)
    return torch.stack([keys, values], dim=2).flatten(1), keys.gather(1, order), values.gather(1, order)


def _noise(batch: int, length: int, generator: Generator) -> Tensor:
    return torch.randint(NOISES, (batch, length), generator=generator) + _NOISE


def _ask_after(given: Tensor, queries: Tensor, values: Tensor) -> Sequences:
    silent = torch.full_like(given, SILENT)
    return torch.cat([given, queries], dim=1), torch.cat([silent, values - _VALUE + _ANSWER], dim=1)
