"""``edgemem run`` for models of features: rows in, predictions out, in the same order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edgemem.cli.interrupt import Interrupt
from edgemem.cli.rows import RowSource
from edgemem.console import console
from edgemem.runtimes import Stream


@dataclass
class Prediction:
    """Feeds rows and hands on what the model says; what it has done so far can be read at any time.

    Attributes:
        stream: The stream to advance.
        interrupt: Ends the run between two calls.
        rows: Rows fed.
        seconds: Time of the model's calls, without the wait for rows.
    """

    stream: Stream
    interrupt: Interrupt
    rows: int = 0
    seconds: float = 0.0

    def run(self, source: RowSource, predicted: Callable[[NDArray[Any]], None]) -> None:
        """Feed every row of ``source``; ``predicted`` gets the outputs ``[N, *output.shape]`` of each batch.

        Raises:
            KeyboardInterrupt: A signal came. Every row that was fed has been handed on.
        """
        errors = console(stderr=True)
        # Predictions on the same terminal show the progress themselves.
        hidden = source.total is None or not errors.is_terminal or sys.stdout.isatty()
        columns = (BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn())
        # Left to itself, the progress bar would take over stdout, to which the predictions go.
        bar = Progress(
            *columns, console=errors, disable=hidden, transient=True, redirect_stdout=False, redirect_stderr=False
        )
        with bar as progress:
            task = progress.add_task("", total=source.total)
            for rows, done in source.batches:
                self.interrupt.check()
                began = time.perf_counter()
                if source.total is None:
                    outputs = self.stream.step(rows[0])
                else:
                    fed = self.stream.feed(rows, outputs="all")
                    assert fed is not None
                    outputs = fed[0]
                self.seconds += time.perf_counter() - began
                self.rows += len(rows)
                predicted(outputs)
                progress.update(task, completed=done)
