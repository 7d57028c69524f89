"""``edgemem run`` for models of features: rows in, predictions out, in the same order."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.rows import RowOptions, Rows, RowSource, open_rows
from edgemem.cli.run_options import STDIN, RunOptions
from edgemem.cli.totals import rate, readable_rate, where
from edgemem.console import console, print_json
from edgemem.contract import OutputSpec
from edgemem.errors import NonFiniteError
from edgemem.runtimes import Session, Stream
from edgemem.wording import counted


def run_features(session: Session, options: RunOptions) -> None:
    """Write a prediction for each row, save the snapshot, and report.

    Raises:
        InputError: A row is wrong; those before it were predicted.
        NonFiniteError: As :class:`~edgemem.errors.InputError`.
        SystemExit: A signal ended the run.
    """
    spec = session.contract.input
    options.rows.check(spec, options.as_json)
    stream = session.stream(on_nan=options.rows.on_nan)
    options.snapshots.restore(stream)
    writer = Writer(session.contract.output, options.rows, options.as_json)
    with Interrupt() as interrupt:
        saver = options.snapshots.saver(stream)
        most_rows = session.contract.max_chunk
        source = open_rows(options.source or STDIN, spec, most_rows, interrupt, options.rows, saver.tick)
        prediction = Prediction(stream, interrupt)
        with Ending(interrupt, saver.save, input_counts=True) as end:

            def predicted(rows: Rows, outputs: NDArray[Any], skipped: NDArray[np.bool_] | None) -> None:
                writer.write(rows, outputs, skipped)
                saver.tick()

            prediction.run(source, predicted)

        def report() -> None:
            rows, per_second = prediction.rows, rate(prediction.rows, prediction.seconds)
            if options.as_json:
                figures = {"rows": rows, "ended_by": end.reason or "end", "rows_per_second": per_second}
                print_json({**writer.to_json(), **figures, **where(session, stream)})
            else:
                click.echo(
                    f"{counted(rows, 'row')}, {readable_rate(per_second)} rows/s; position {stream.position:,}",
                    err=True,
                )

        end.close(report)


@dataclass
class Writer:
    """Writes a line for each row: its timestamp, if there is one, and the outputs; an empty one for a skipped row.

    With ``as_json`` everything is kept for one object at the end.
    """

    output: OutputSpec
    options: RowOptions
    as_json: bool
    _predictions: list[Any] = field(default_factory=list)
    _timestamps: list[str] = field(default_factory=list)
    _has_begun: bool = False

    def write(self, rows: Rows, outputs: NDArray[Any], skipped: NDArray[np.bool_] | None) -> None:
        """Write the outputs ``[N, *output.shape]`` of ``rows``, of which some were skipped, bool ``[N]``."""
        skips = [False] * len(outputs) if skipped is None else skipped.tolist()
        if self.as_json:
            self._predictions += [None if skip else row for row, skip in zip(outputs.tolist(), skips, strict=True)]
            self._timestamps += rows.timestamps or ()
            return
        times = [f"{time}," for time in rows.timestamps] if rows.timestamps else [""] * len(outputs)
        lines = [
            "" if skip else time + ",".join(map(str, row.ravel()))
            for time, row, skip in zip(times, outputs, skips, strict=True)
        ]
        if self.options.output_header and not self._has_begun:
            lines.insert(0, self._header())
        self._has_begun = True
        click.echo("\n".join(lines))

    def _header(self) -> str:
        count = math.prod(self.output.shape)
        names = [f"{self.output.name}.{i}" for i in range(count)] if self.output.shape else [self.output.name]
        time = self.options.timestamp
        return ",".join([*([] if time is None else ["timestamp" if time.isdecimal() else time]), *names])

    def to_json(self) -> dict[str, Any]:
        """Everything that was written, as plain JSON values."""
        times = {} if self.options.timestamp is None else {"timestamps": self._timestamps}
        return {"predictions": self._predictions, **times}


Predicted = Callable[[Rows, NDArray[Any], "NDArray[np.bool_] | None"], None]


@dataclass
class Prediction:
    """Feeds rows and hands on the model's outputs. Its figures can be read at any time.

    Attributes:
        stream: The stream to advance.
        interrupt: Ends the run between two calls.
        rows: Rows read.
        seconds: Time of the model's calls, without the wait for rows.
    """

    stream: Stream
    interrupt: Interrupt
    rows: int = 0
    seconds: float = 0.0

    def run(self, source: RowSource, predicted: Predicted) -> None:
        """Feed every row of ``source``; ``predicted`` gets each batch, its outputs, and which rows were skipped.

        Raises:
            KeyboardInterrupt: There was a signal. The output of every row that was fed has been handed on.
            NonFiniteError: A row or, with the guard, what it gives is not finite; those before it were handed on.
        """
        with _progress_bar(source) as progress, contextlib.closing(source.batches) as batches:
            task = progress.add_task("", total=source.total)
            for rows in batches:
                try:
                    self._feed(rows, predicted)
                except NonFiniteError:  # the stream is as it was: find the row, and keep those before it
                    for index, number in enumerate(rows.numbers):
                        try:
                            self._feed(rows.row(index), predicted)
                        except NonFiniteError as error:
                            message = f"{source.place(number)}: {error.message}"
                            raise NonFiniteError(message, hint=error.hint) from None
                progress.update(task, completed=rows.done)

    def _feed(self, rows: Rows, predicted: Predicted) -> None:
        self.interrupt.check()
        began = time.perf_counter()
        if len(rows.numbers) == 1:
            outputs = self.stream.step(rows.values[0])
        else:
            fed = self.stream.feed(rows.values, outputs="all")
            assert fed is not None
            outputs = fed[0]
        self.seconds += time.perf_counter() - began
        self.rows += len(rows.numbers)
        predicted(rows, outputs, None if self.stream.skipped is None else self.stream.skipped[0])


def _progress_bar(source: RowSource) -> Progress:
    errors = console(stderr=True)
    # Predictions on the same terminal show the progress themselves.
    hidden = source.total is None or not errors.is_terminal or sys.stdout.isatty()
    return Progress(
        BarColumn(),
        TextColumn("{task.percentage:.0f}%"),
        TimeRemainingColumn(),
        console=errors,
        disable=hidden,
        transient=True,
        # By default the progress bar would take over stdout, where the predictions go.
        redirect_stdout=False,
        redirect_stderr=False,
    )
