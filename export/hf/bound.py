"""What an unbounded attention layer is bounded to: ``--memory "sinks=4,window=1024"``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from edgemem.errors import ConfigError

Positions = Literal["slot", "absolute"]
SummaryKind = Literal["cumulative"]


@dataclass(frozen=True)
class MemoryOption:
    """The memory that takes the place of every growing cache.

    Attributes:
        window: Newest pairs that are kept, the query's own included.
        sinks: First pairs of the stream that are kept once they have left the window (Xiao et al. 2023).
        summary: A summary of the whole past as one more slot; for models that were trained with it.
        positions: Where a query stands when it looks at the sinks. ``"slot"``: right behind them, at
            ``min(i, sinks + window - 1)``, so that no distance exceeds those of training. ``"absolute"``: at its own
            position ``i``.
    """

    window: int
    sinks: int = 0
    summary: SummaryKind | None = None
    positions: Positions = "slot"

    def __post_init__(self) -> None:
        for name, value, least in (("window", self.window, 1), ("sinks", self.sinks, 0)):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ConfigError(f"memory: {name} must be a whole number of at least {least}, got {value!r}.")
        if self.summary is not None and self.summary not in get_args(SummaryKind):
            raise ConfigError(f"memory: summary {self.summary!r} is not one of {', '.join(get_args(SummaryKind))}.")
        if self.positions not in get_args(Positions):
            raise ConfigError(f"memory: positions {self.positions!r} is neither 'slot' nor 'absolute'.")

    @property
    def span(self) -> int:
        """Largest distance, plus one, that rotary positions must tell apart, where positions are by slot."""
        return self.window + self.sinks

    @classmethod
    def parse(cls, text: str) -> MemoryOption:
        """Read ``"sinks=4,window=1024"``: names of this class with values, parted by commas.

        Raises:
            ConfigError: An unknown name, no window, or a value out of range.
        """
        known = [field.name for field in fields(cls)]
        values: dict[str, str] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or name not in known or name in values:
                raise ConfigError(
                    f"memory {text!r}: cannot read {part.strip()!r}.",
                    hint=f'Wanted each of {", ".join(known)} at most once, as in "sinks=4,window=1024".',
                )
            values[name] = value
        if "window" not in values:
            raise ConfigError(f"memory {text!r} has no window.", hint='For instance "sinks=4,window=1024".')
        numbers = {name: _whole(name, values.pop(name)) for name in ("window", "sinks") if name in values}
        return cls(**numbers, **values)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [f"sinks={self.sinks}"] * bool(self.sinks) + [f"window={self.window}"]
        parts += [f"summary={self.summary}"] * (self.summary is not None)
        parts += [f"positions={self.positions}"] * bool(self.sinks)
        return ",".join(parts)


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"memory: {name} must be a whole number, got {value!r}.") from None
