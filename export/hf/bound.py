"""What bounds a cache that grows: a memory of fixed size, or a largest number of positions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from edgemem.errors import ConfigError, ExportError, UnboundedCacheError
from edgemem.manifest import LoadOptions

Positions = Literal["slot", "absolute"]
SummaryKind = Literal["cumulative"]


@dataclass(frozen=True)
class MemoryBound:
    """A memory of fixed size in place of every growing cache: ``--memory "sinks=4,window=1024"``.

    Attributes:
        window: Newest pairs that are kept, the query's own included.
        sinks: First pairs of the stream that are kept once they have left the window (Xiao et al. 2023).
        summary: A summary of the whole past as one more slot; for models that were trained with it.
        positions: The position of a query when it reads the sinks. ``"slot"``: right behind them, at
            ``min(i, sinks + window - 1)``, so that no distance exceeds those of training. ``"absolute"``: its own
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

    @classmethod
    def parse(cls, text: str) -> MemoryBound:
        """Read ``"sinks=4,window=1024"``: names of this class with values, separated by commas.

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


@dataclass(frozen=True)
class LengthBound:
    """Exact attention to the whole past, for a stream of at most so many positions: ``--max-length``.

    Attributes:
        window: The largest number of positions.
    """

    window: int


Bound = MemoryBound | LengthBound


def read_bound(memory: str | None, max_length: int | None) -> Bound | None:
    """The bound that options name, or ``None``.

    Raises:
        ConfigError: ``memory`` cannot be read.
        ExportError: Both are given.
    """
    if memory is not None and max_length is not None:
        raise ExportError(
            "--memory and --max-length exclude each other.",
            hint="With a bounded memory the stream never ends. With a maximal length the model keeps the whole past, "
            "and the stream ends there.",
        )
    if max_length is not None:
        return LengthBound(max_length)
    return None if memory is None else MemoryBound.parse(memory)


def load_options(bound: Bound | None) -> LoadOptions:
    """The options that name a bound, for the manifest."""
    if isinstance(bound, MemoryBound):
        return LoadOptions(memory=str(bound))
    return LoadOptions(max_length=None if bound is None else bound.window)


def max_positions(bound: Bound | None) -> int | None:
    """The largest number of positions that a bound allows; ``None`` for no limit."""
    return bound.window if isinstance(bound, LengthBound) else None


def span(windows: list[int | None], bound: Bound | None) -> int | None:
    """One more than the largest distance between a query and a key that it sees; ``None`` for no limit.

    Args:
        windows: The windows of the model's attention layers; ``None`` for layers that see the whole past.
        bound: What bounds those layers.
    """
    if isinstance(bound, LengthBound):
        return bound.window
    if bound is None:
        return max((window or 0 for window in windows), default=0)
    if None in windows and bound.sinks and bound.positions == "absolute":
        return None
    return max((window or bound.window + bound.sinks for window in windows), default=0)


def check_bound(model: str, full: list[str], bound: Bound | None) -> None:
    """Refuse a growing cache without a bound, and a bound without a growing cache.

    Args:
        model: The model's class, for messages.
        full: The attention layers that see the whole past.
        bound: What bounds them.

    Raises:
        UnboundedCacheError: Nothing bounds a cache that grows.
        ExportError: The bound has nothing to bound.
    """
    if full and bound is None:
        raise UnboundedCacheError(
            f"{model} has a cache that grows without limit in {len(full)} of its layers ({full[0]}, ...).",
            hint='Bound it with --memory "sinks=4,window=1024" (an approximation), or keep it exact up to a length '
            "with --max-length N.",
        )
    if not full and bound is not None:
        option = "--memory" if isinstance(bound, MemoryBound) else "--max-length"
        raise ExportError(f"{model} has no cache that grows: leave {option} out.")


def _whole(name: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"memory: {name} must be a whole number, got {value!r}.") from None
