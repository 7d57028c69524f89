"""Options of transformers models: how a growing cache is bounded, and whether a folder's own code may run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from edgemem.errors import ConfigError


def memory_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the three options, as ``memory``, ``max_length`` and ``trust_remote_code``."""
    for option in (
        click.option(
            "--trust-remote-code",
            is_flag=True,
            help="Transformers: run the Python files in the model's folder. Only for folders whose author you trust.",
        ),
        click.option(
            "--max-length",
            type=click.IntRange(min=1),
            help="Transformers: keep the whole past, exactly, up to this many tokens; the stream ends there.",
        ),
        click.option(
            "--memory",
            metavar="LIST",
            help='Transformers: bound caches that grow, as in "sinks=4,window=1024": the first 4 and the newest 1024 '
            "tokens. An approximation: the model was trained on the whole past. Queries see sinks right before the "
            "window (positions=slot), or where they were (positions=absolute).",
        ),
    ):
        command = option(command)
    return command


def check_memory_options(memory: str | None, max_length: int | None) -> None:
    """Refuse a memory that cannot be read, and both kinds of bound at once (needs torch).

    Raises:
        click.UsageError: One of the two.
    """
    from edgemem.export.hf.memory import MemoryOption

    if memory is None:
        return
    if max_length is not None:
        raise click.UsageError(
            "--memory and --max-length exclude each other: a bounded memory streams for ever, a maximal length keeps "
            "the whole past and ends there."
        )
    try:
        MemoryOption.parse(memory)
    except ConfigError as error:
        raise click.BadParameter(str(error), param_hint="--memory") from None
