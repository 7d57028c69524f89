"""``edgemem bench``: measure a bundle on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from edgemem.bench import stored
from edgemem.bench.against import against
from edgemem.bench.compare import compare_results
from edgemem.bench.measure import Progress as Report
from edgemem.bench.result import BenchResult
from edgemem.bench.suite import run as run_suite
from edgemem.bench.table import Table
from edgemem.bench.words import ms, spread, times
from edgemem.cli.bench_options import STDOUT, Measuring, Reports
from edgemem.cli.options import option_group
from edgemem.console import console, print_json, print_table, printable
from edgemem.errors import EdgememError
from edgemem.wording import counted

PAGE = Path("bench.html")
SLOWER, NOT_COMPARABLE = 1, 3


@click.command()
@click.argument("bundle", metavar="BUNDLE | --page RESULT…", nargs=-1, required=True, type=click.Path(path_type=Path))
@option_group("measuring", Measuring)
@option_group("reports", Reports)
@click.pass_context
def bench(context: click.Context, bundle: tuple[Path, ...], measuring: Measuring, reports: Reports) -> None:
    """Benchmark the loop of edgemem run on BUNDLE against alternatives, interleaved.

    Measures the latency of a step, latency against the position of the stream, prefill, memory and the time to open.
    In the same rounds it runs a hand-written loop, torch, a growing KV cache, and the floor: the time in which this
    machine reads the weights once. An interrupted run writes no output.
    """
    if reports.html_file is not None or reports.page:
        from edgemem.bench import page

        page.require()
    for file in reports.files:
        _check_writable(file)
    if reports.page:
        results = [stored.read_result(path) for path in bundle]
        _write(results, reports, reports.html_file or PAGE)
        return
    if len(bundle) > 1:
        raise click.UsageError("bench measures one BUNDLE; several files are results, with --page.")
    if reports.against is not None:
        context.exit(_against(bundle[0], measuring, reports))
    old = stored.read_result(reports.compare) if reports.compare else None
    options = measuring.options(bundle[0])
    with progress_bars(console(stderr=True)) as progress:
        result = run_suite(bundle[0], options, measuring.plan(), progress)
    if reports.json_file == STDOUT:
        print_json(result.to_json())
    else:
        show(console(), result, full=reports.full)
    _write([result], reports, reports.html_file)
    if old is not None:
        context.exit(_compare(old, result, to_stderr=reports.json_file == STDOUT))


def _write(results: Sequence[BenchResult], reports: Reports, html_file: Path | None) -> None:
    """Write every file that was asked for."""
    if reports.json_file is not None and reports.json_file != STDOUT:
        stored.write(reports.json_file, stored.encode(results[0]))
    if reports.report_file is not None:
        stored.write(reports.report_file, stored.report(results[0]))
    if reports.markdown_file is not None:
        stored.write(reports.markdown_file, stored.markdown(results))
    if reports.csv_file is not None:
        stored.write(reports.csv_file, stored.as_csv(results))
    if html_file is not None:
        from edgemem.bench import page

        stored.write(html_file, page.render(*results))
        click.echo(printable(f"Report: {html_file}"), err=True)


def _compare(old: BenchResult, new: BenchResult, *, to_stderr: bool) -> int:
    """Print what changed; the exit code says whether it got slower."""
    changed, on = compare_results(old, new), console(stderr=to_stderr)
    _show_table(on, changed.table())
    for warning in changed.warnings:
        on.print(f"Warning: {warning}", style="bold")
    if changed.warnings:
        return NOT_COMPARABLE
    return SLOWER if changed.slower else 0


def _against(bundle: Path, measuring: Measuring, reports: Reports) -> int:
    """Compare two builds in turns; the exit code says whether this one is slower."""
    options = measuring.options(bundle)
    with progress_bars(console(stderr=True)) as progress:
        verdict = against(
            bundle,
            str(reports.against),
            runtime=options.runtime,
            threads=options.threads,
            device=options.device,
            progress=progress,
        )
    slower = verdict.is_slower(reports.fail_above)
    click.echo(f"this build   {ms(verdict.ours_ms)} a step, {verdict.ours}")
    click.echo(f"the other    {ms(verdict.theirs_ms)} a step, {verdict.theirs}")
    click.echo(
        f"A step of this build takes {times(verdict.ratio)} what it takes with the other ({spread(verdict.ratio)}, "
        f"{verdict.ratio.rounds} starts): {'slower' if slower else 'not slower'} by more than {reports.fail_above:.0%}."
    )
    return SLOWER if slower else 0


def show(on: Console, result: BenchResult, *, full: bool = True) -> None:
    """Print the result as tables: all of them, or those of one screen."""
    for warning in result.warnings:
        on.print(f"Warning: {warning}", style="bold red")
    on.print(f"{result.subject.name}: {result.headline()}", style="bold")
    on.print()
    tables = result.tables()
    for table in tables:
        if full or table.brief:
            _show_table(on, table)
    if not full:
        more = counted(len(tables) - sum(table.brief for table in tables), "more table")
        on.print(f"{more}: --full prints them, --html draws them.")


def _show_table(on: Console, table: Table) -> None:
    if table.rows:
        print_table(on, table.title, table.columns, table.rows, right=table.right)
    else:
        on.print(table.title, style="bold")
    for note in table.notes:
        on.print(note)
    on.print()


def _check_writable(file: Path) -> None:
    """Refuse a file that cannot be written before anything is measured."""
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
