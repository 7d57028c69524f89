"""Groups of options that commands share. A group is a dataclass; each field declares one option."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import edgemem
from edgemem.overrides import override
from edgemem.runtimes import DEVICES, Session, known_runtimes

MOST_THREADS = 256
MOST_STEPS = 10_000_000
MOST = (1 << 31) - 1
"""The largest number that an option takes, where nothing sets another limit."""


def count(least: int, most: int = MOST) -> click.IntRange:
    """The type of an option that is a whole number from ``least`` to ``most``."""
    return click.IntRange(least, most)


class FiniteRange(click.FloatRange):
    """The type of an option that is a real number: neither NaN, which no comparison refuses, nor infinity."""

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def option(*flags: str, default: Any = None, **settings: Any) -> Any:
    """A dataclass field that is also an option; ``settings`` are those of :func:`click.option`."""
    return dataclasses.field(default=default, metadata={"flags": flags, "settings": settings})


def option_group(name: str, group: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a group.

    Args:
        name: The command's argument that gets them.
        group: A dataclass whose fields are made with :func:`option`.
    """
    fields = dataclasses.fields(group)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            chosen = group(**{field.name: values.pop(field.name) for field in fields})
            return command(**values, **{name: chosen})

        for field in reversed(fields):
            settings = {"default": field.default, **field.metadata["settings"]}
            call = click.option(*field.metadata["flags"], field.name, **settings)(call)
        return call

    return decorate


def flags_given(options: Any) -> list[str]:
    """The flags of the options of a group whose values are not the defaults."""
    return [
        field.metadata["flags"][0]
        for field in dataclasses.fields(options)
        if getattr(options, field.name) != field.default
    ]


@dataclass(frozen=True)
class EngineOptions:
    """Which engine runs a bundle, and where."""

    runtime: str = option(
        "--runtime",
        default="auto",
        type=click.Choice(["auto", *known_runtimes()]),
        show_default=True,
        help="The engine.",
    )
    threads: int | None = option("--threads", metavar="N", type=count(1, MOST_THREADS), help="Threads of the engine.")
    device: str = option(
        "--device", default="auto", type=click.Choice(DEVICES), show_default=True, help="Where the model runs."
    )

    def open(self, bundle: Path, *, guard: bool = False) -> Session:
        """Open a bundle, see :func:`edgemem.open`."""
        return edgemem.open(bundle, self.runtime, threads=self.threads, device=self.device, guard=guard)
