"""How ``edgemem run`` draws text: as the user says, else as the model's authors do, else as edgemem does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import click

from edgemem.errors import InputError
from edgemem.generation_defaults import GenerationDefaults
from edgemem.text.sampling import Sampler

TEMPERATURE = 0.8
MAX_TOKENS = 256

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Wishes:
    """What the user said; ``None`` where nothing.

    Attributes:
        temperature: See :class:`~edgemem.text.sampling.Sampler`.
        top_k: See there.
        top_p: See there.
        min_p: See there.
        seed: See there.
        max_tokens: Most tokens of one text; 0 is without end.
        stops: Texts that end it.
        ignore_eos: Whether the tokens that end a text are tokens like others.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True)
class Drawing:
    """How text is drawn.

    Attributes:
        sampler: Draws a token.
        max_tokens: Most tokens of one text; 0 is without end.
        ends: Tokens that end it.
        stops: Texts that end it.
        ignores_ends: Whether no token ends it.
    """

    sampler: Sampler
    max_tokens: int
    ends: frozenset[int]
    stops: tuple[str, ...]
    ignores_ends: bool


def drawing(wishes: Wishes, defaults: GenerationDefaults) -> Drawing:
    """What the user wants, and the bundle's defaults where they want nothing.

    Raises:
        UsageError: A wish is out of range.
    """
    if not all(wishes.stops):
        raise click.UsageError("--stop is empty.")
    chosen = (wishes.temperature, wishes.top_k, wishes.top_p, wishes.min_p)
    # Greedy decoding is a default like another: whoever names one of the others wants to draw.
    is_greedy = defaults.do_sample is False and all(wish is None for wish in chosen)
    temperature = 0.0 if is_greedy else _first(wishes.temperature, defaults.temperature, TEMPERATURE)
    try:
        sampler = Sampler(
            temperature,
            _first(wishes.top_k, defaults.top_k, 0),
            _first(wishes.top_p, defaults.top_p, 1.0),
            wishes.seed,
            _first(wishes.min_p, defaults.min_p, 0.0),
        )
    except InputError as error:
        raise click.UsageError(str(error)) from None
    return Drawing(
        sampler,
        _first(wishes.max_tokens, defaults.max_new_tokens, MAX_TOKENS),
        frozenset() if wishes.ignore_eos else frozenset(defaults.eos_token_ids),
        wishes.stops,
        wishes.ignore_eos,
    )


def _first(wish: _Number | None, default: _Number | None, otherwise: _Number) -> _Number:
    return wish if wish is not None else default if default is not None else otherwise
