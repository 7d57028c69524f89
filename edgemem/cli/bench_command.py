"""``edgemem bench``: measure a bundle on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from edgemem.bench.measure import Progress as Report
from edgemem.bench.result import BenchResult
from edgemem.bench.subject import Options, Plan
from edgemem.bench.suite import run as run_suite
from edgemem.cli.options import MOST_STEPS, MOST_THREADS, FiniteRange, count
from edgemem.console import console, print_json, print_table, printable
from edgemem.errors import EdgememError
from edgemem.files import write_atomic
from edgemem.runtimes import DEVICES, known_runtimes

STDOUT = Path("-")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--steps", type=count(20, MOST_STEPS), help="Steps of the main loop. [default: 2000, quick: 200]")
@click.option("--quick", is_flag=True, help="A short run with rough figures.")
@click.option("--no-baselines", is_flag=True, help="Measure only the bundle.")
@click.option("--rate", metavar="HZ", type=FiniteRange(0.001, 1e6), help="Also run a loop with deadlines at HZ.")
@click.option(
    "--idle-gap", metavar="MS", type=FiniteRange(0, 60_000, min_open=True), help="Also time steps after a pause of MS."
)
@click.option("--operators", is_flag=True, help="Also time each operator of a step (onnxruntime).")
@click.option("--runtime", type=click.Choice(["auto", *known_runtimes()]), default="auto", show_default=True)
@click.option("--threads", type=count(1, MOST_THREADS), help="Threads of the engine and of the baselines.")
@click.option("--device", type=click.Choice(DEVICES), default="auto", show_default=True)
@click.option("--json", "json_file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path, allow_dash=True),
              help="Write the result as JSON; - prints it in place of the tables.")  # fmt: skip
@click.option("--html", "html_file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
              help="Write an HTML page with plots.")  # fmt: skip
def bench(
    bundle: Path,
    steps: int | None,
    quick: bool,
    no_baselines: bool,
    rate: float | None,
    idle_gap: float | None,
    operators: bool,
    runtime: str,
    threads: int | None,
    device: str,
    json_file: Path | None,
    html_file: Path | None,
) -> None:
    """Benchmark the loop of edgemem run on BUNDLE against alternatives, interleaved.

    Measures the latency of a step, latency against the position of the stream, prefill, memory and the time to open.
    In the same rounds it runs a hand-written loop, torch, a growing KV cache, and the floor: the time in which this
    machine reads the weights once. An interrupted run writes no output.
    """
    if html_file is not None:
        from edgemem.bench import page

        page.require()
    for file in (json_file, html_file):
        _check_writable(file)
    plan = Plan.quick() if quick else Plan()
    if steps is not None:
        plan = replace(plan, steps=steps)
    options = Options(
        runtime=runtime,
        device=device,
        threads=threads,
        rate_hz=rate,
        idle_gap_ms=idle_gap,
        baselines=not no_baselines,
        operators=operators,
        quick=quick,
    )
    with progress_bars(console(stderr=True)) as progress:
        result = run_suite(bundle, options, plan, progress)
    if json_file == STDOUT:
        print_json(result.to_json())
    else:
        show(console(), result)
    if json_file is not None and json_file != STDOUT:
        text = json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(json_file, f"{text}\n".encode())
    if html_file is not None:
        write_atomic(html_file, page.render(result).encode())
        click.echo(printable(f"Report: {html_file}"), err=True)


def show(on: Console, result: BenchResult) -> None:
    """Print the result as tables."""
    on.print(f"{result.subject.name}: {result.headline()}", style="bold")
    on.print()
    for table in result.tables():
        if table.rows:
            print_table(on, table.title, table.columns, table.rows, right=table.right)
        else:
            on.print(table.title, style="bold")
        for note in table.notes:
            on.print(note)
        on.print()


def _check_writable(file: Path | None) -> None:
    """Refuse a file that cannot be written before anything is measured."""
    if file is None or file == STDOUT:
        return
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        problem = "is not writable" if file.parent.is_dir() else "is not a folder"
        raise EdgememError(f"cannot write {file}: {file.parent} {problem}.")


@contextmanager
def progress_bars(on: Console) -> Iterator[Report]:
    """Progress bars that are redrawn between timed sections; a thread that redraws would be measured too."""
    bars = Progress(
        TextColumn("{task.description:<24}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=on,
        auto_refresh=False,
        transient=True,
        disable=not on.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def update(what: str, done: int, total: int) -> None:
        if what not in tasks:
            tasks[what] = bars.add_task(what, total=total)
        bars.update(tasks[what], completed=done, total=total)
        bars.refresh()

    with bars:
        yield update
