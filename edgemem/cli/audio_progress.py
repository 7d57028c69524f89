"""How far ``edgemem run --audio`` has read a long file, as a bar on the terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_LEAST_S = 60.0
"""Shorter files end before a bar says anything."""


@contextlib.contextmanager
def audio_bar(on: Console, audio_s: float | None, out: Path | None) -> Iterator[Callable[[float], None]]:
    """A function that takes the seconds of audio that were read.

    It shows a bar only on a terminal, of a file of a minute and more, and where no results are printed on the terminal.

    Args:
        on: Where the bar is shown.
        audio_s: Length of the file in seconds; ``None``: live.
        out: The file that the results are written to; ``None`` or ``-``: stdout.
    """
    prints = (out is None or str(out) == "-") and sys.stdout.isatty()
    if audio_s is None or audio_s < _LEAST_S or not on.is_terminal or prints:
        yield lambda read_s: None
        return
    columns = (BarColumn(), TextColumn("{task.completed:,.0f} of {task.total:,.0f} s of audio"), TimeRemainingColumn())
    with Progress(*columns, console=on, transient=True, redirect_stdout=False, redirect_stderr=False) as bars:
        task = bars.add_task("", total=audio_s)
        yield lambda read_s: bars.update(task, completed=read_s)
