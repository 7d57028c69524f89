"""What every command prints with: tables for people, JSON for scripts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Outside a terminal nothing is wrapped: a row stays a line, for grep and awk.
_UNWRAPPED_COLUMNS = 100_000


# Characters that a terminal may obey rather than show, except for the end of a line and the tab.
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code not in (9, 10)}
_C1_IN_JSON = {code: f"\\u{code:04x}" for code in range(127, 160)}


def printable(text: str) -> str:
    """``text`` with control characters escaped, so that what a file holds cannot steer the terminal.

    >>> printable("a\\x1b[2J")
    'a\\\\x1b[2J'
    """
    return text.translate(_CONTROL)


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """Print, with control characters escaped in what is text alone."""
        super().print(*(printable(part) if isinstance(part, str) else part for part in objects), **options)

    def on_broken_pipe(self) -> None:
        """Let a closed pipe reach the one place that handles it for every command."""
        raise BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console on stdout or stderr: coloured on a terminal, elsewhere plain and never wrapped. Text has no markup."""
    settings: dict[str, Any] = {"stderr": stderr, "highlight": False, "markup": False, "emoji": False}
    made = _Console(soft_wrap=False, **settings)
    return made if made.is_terminal else _Console(width=_UNWRAPPED_COLUMNS, **settings)


def headed(head: str, rest: str, style: str = "bold") -> Text:
    """A line whose beginning is emphasised."""
    return Text.assemble((printable(head), style), printable(rest))


def print_table(
    on: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
) -> None:
    """Print a table.

    Args:
        on: The console.
        title: The line above the table.
        columns: The headings.
        rows: The cells, plain text without markup.
        right: Headings of the columns of numbers, which are aligned to the right.
    """
    table = Table(box=box.SIMPLE_HEAD if on.is_terminal else None, title_justify="left", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    on.print(headed(title, ""))
    on.print(table)
    if not on.is_terminal:
        on.print()


def print_json(value: Any) -> None:
    """Print one JSON value on stdout. NaN and infinity, which JSON lacks, become ``null``."""
    text = json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False)
    click.echo(text.translate(_C1_IN_JSON))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def readable_bytes(count: int) -> str:
    """``count`` bytes for people, in powers of 1024: ``512 B``, ``1.5 KiB``, ``64 GiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def readable_count(count: int) -> str:
    """``count`` for people, in powers of 1024: ``256``, ``4k``, ``1M``."""
    for unit in ("", "k", "M", "G"):
        if count < 1024 or count % 1024:
            return f"{count}{unit}"
        count //= 1024
    return f"{count}T"
