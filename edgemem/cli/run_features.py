"""``edgemem run`` for models of features: rows in, predictions out, in the same order."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edgemem.cli.ending import Ending
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.note import Note
from edgemem.cli.rows import RowSource, open_rows
from edgemem.cli.run_options import STDIN, RunOptions
from edgemem.cli.totals import rate, readable_rate, where
from edgemem.console import console, print_json
from edgemem.runtimes import Session, Stream


def run_features(session: Session, options: RunOptions) -> None:
    """Write a prediction for each row, save the snapshot, and report.

    Raises:
        InputError: A row is wrong; those before it were predicted.
        SystemExit: A signal ended the run.
    """
    stream = session.stream()
    options.snapshots.restore(stream)
    predictions: list[Any] = []

    def write(outputs: NDArray[Any]) -> None:
        if options.as_json:
            predictions.extend(outputs.tolist())
        else:
            click.echo("\n".join(",".join(map(str, row.ravel())) for row in outputs))

    with Interrupt() as interrupt:
        source = open_rows(options.source or STDIN, session.contract.input, session.contract.max_chunk, interrupt)
        prediction = Prediction(stream, interrupt)
        with Ending(interrupt, input_counts=True) as end:
            prediction.run(source, write)
        options.snapshots.save(stream, Note())

        def report() -> None:
            rows, per_second = prediction.rows, rate(prediction.rows, prediction.seconds)
            if options.as_json:
                figures = {"rows": rows, "ended_by": end.reason or "end", "rows_per_second": per_second}
                print_json({"predictions": predictions, **figures, **where(session, stream)})
            else:
                click.echo(f"{rows:,} rows, {readable_rate(per_second)} rows/s; position {stream.position:,}", err=True)

        end.close(report)


@dataclass
class Prediction:
    """Feeds rows and hands on the model's outputs. Its figures can be read at any time.

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
            KeyboardInterrupt: There was a signal. The output of every row that was fed has been handed on.
        """
        with _progress_bar(source) as progress:
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
