"""``make evidence``: run what is left of the plan, or one row of it.

::

    PYTHONPATH=benchmarks python -m evidence --workers 2           # all that is left; may be killed at any moment
    PYTHONPATH=benchmarks python -m evidence --row window --bytes 16K --task recall   # one cell, in minutes
    PYTHONPATH=benchmarks python -m evidence --gates                       # whether the ceiling and the floor are right

Each finished run is one JSON file in ``benchmarks/evidence/results``. A run whose file is there is not run again.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch

from edgemem.evidence import Evidence
from evidence.gates import gates
from evidence.merge import merged
from evidence.plan import MAIN_BUDGETS, OTHER_BUDGETS, Cell, Work, cells, counts, left
from evidence.rows import KIB, ROWS
from evidence.runs import RESULTS, perform, score_bundle, work_folder
from evidence.tasks import TASKS

_BUDGETS = sorted((*MAIN_BUDGETS, *OTHER_BUDGETS))
_SIZES = [f"{budget // KIB}K" for budget in _BUDGETS]


@contextmanager
def claimed(work: Work, folder: Path) -> Iterator[bool]:
    """Hold a piece of work, so that no other process does it too. The lock ends with the process."""
    with (work_folder(folder) / f"{work.run.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def do(work: Work, folder: Path, steps: int | None) -> None:
    """Do a piece of work and say so."""
    if work.bundle:
        result = score_bundle(work.run, folder, steps)
        words = ", ".join(f"{name} {score:.3f}" for name, score in result["bundle"].items())
        click.echo(f"{work.run.name}: {words}; differs by {result['difference']:.1e}")
    else:
        result = perform(work.run, folder, steps)
        click.echo(f"{work.run.name}: validation {result['validation']}, {result['train_s']} s")


def next_work(folder: Path, chosen: list[Cell]) -> Iterator[Work]:
    """What is left, looked up anew after each piece; what another process holds is passed over."""
    passed: set[Work] = set()
    while True:
        for work in left(folder, chosen):
            if work not in passed:
                passed.add(work)
                yield work
                break
        else:
            return


def _say_plan(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        done, there = counts(context.params["results"])
        click.echo(f"{done} of {there} trainings are done.")
        context.exit()


def _say_gates(context: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        found = gates(Evidence.from_json(merged(context.params["results"], scores_alone=True)))
        for gate in found:
            click.echo(f"{gate.what}: {gate.found or '-'}: {gate.verdict.strip('*')}")
        context.exit(not all(gate.holds for gate in found))


@click.command(context_settings={"show_default": True})
@click.option("--row", type=click.Choice(list(ROWS)), help="Only this row, with --bytes and --task.")
@click.option("--bytes", "size", type=click.Choice(_SIZES), default=_SIZES[1], help="Bytes of a stream's state.")
@click.option("--task", "tasks", type=click.Choice(list(TASKS)), multiple=True, help="Only this task; may be repeated.")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, is_eager=True, help="Their folder.")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Processes, each with one thread.")
@click.option("--steps", type=click.IntRange(min=1), help="Fewer training steps, to try the harness.")
@click.option("--plan", is_flag=True, callback=_say_plan, expose_value=False, help="Only say how much is done.")
@click.option("--gates", is_flag=True, callback=_say_gates, expose_value=False, help="Only check the harness.")
def main(row: str | None, size: str, tasks: tuple[str, ...], results: Path, workers: int, steps: int | None) -> None:
    """Train, export and score what is left of the plan."""
    chosen = [cell for cell in cells() if cell.task in (tasks or TASKS)]
    if row:
        budget = 0 if ROWS[row].grows else _BUDGETS[_SIZES.index(size)]
        chosen = [cell for cell in chosen if (cell.row, cell.budget) == (row, budget)]
        if not chosen:
            raise click.UsageError(
                f"the plan has no {row} at {size}: the memory cannot spend it, or it is not a main row"
            )
    results.mkdir(parents=True, exist_ok=True)
    others = [
        subprocess.Popen([sys.executable, "-m", "evidence", *sys.argv[1:], "--workers", "1"])
        for _ in range(workers - 1)
    ]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for work in next_work(results, chosen):
        with claimed(work, results) as mine:
            if mine and work.is_left(results):
                do(work, results, steps)
    for other in others:
        other.wait()


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
