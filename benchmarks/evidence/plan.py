"""What is run, and in which order: breadth first, so that what is there at any moment makes a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evidence.rows import KIB, ROWS, variant
from evidence.runs import RATES, SEEDS, Run, read
from evidence.tasks import TASKS

MAIN_BUDGETS = (16 * KIB, 64 * KIB)
OTHER_BUDGETS = (4 * KIB, 256 * KIB)
_FIRST_ROWS = ("full", "window", "window_delta", "window_linear", "delta", "cumulative", "sinks")
"""These tell most, so they are trained first."""


@dataclass(frozen=True)
class Cell:
    """A row at a budget on a task: a sweep of learning rates on one seed, and more seeds at the best rate."""

    row: str
    budget: int
    task: str

    @property
    def name(self) -> str:
        """Task, budget and row, in a word."""
        return f"{self.task}-{self.budget // KIB}K-{self.row}"

    def sweep(self) -> list[Run]:
        """Every rate with the first seed."""
        return [Run(self.row, self.budget, self.task, rate, SEEDS[0]) for rate in RATES]

    def best_rate(self, folder: Path) -> float | None:
        """The rate whose validation is best; ``None`` until the sweep is done. Of diverged runs none is best."""
        results = [read(folder, run) for run in self.sweep()]
        if not all(results):
            return None
        sign = -1 if TASKS[self.task].more_is_better else 1
        usable = [result for result in results if math.isfinite(result["validation"])]
        found: float = min(usable or results, key=lambda result: sign * result["validation"])["rate"]
        return found

    def seeds(self, folder: Path) -> list[Run]:
        """Every seed at the best rate; none until the sweep is done."""
        rate = self.best_rate(folder)
        return [] if rate is None else [Run(self.row, self.budget, self.task, rate, seed) for seed in SEEDS]


def cells() -> list[Cell]:
    """Every cell, in the order in which they are run."""
    keys = [*_FIRST_ROWS, *(key for key in ROWS if key not in _FIRST_ROWS)]
    return [
        Cell(key, budget, task)
        for budgets in ((0, MAIN_BUDGETS[0]), MAIN_BUDGETS[1:], OTHER_BUDGETS)
        for task in TASKS
        for budget in budgets
        for key in keys
        if (budget not in OTHER_BUDGETS or ROWS[key].main)
        and ROWS[key].grows == (budget == 0)
        and variant(key, budget) is not None
    ]


@dataclass(frozen=True)
class Work:
    """Something left to do: train a run, or score what it trained through a bundle."""

    run: Run
    bundle: bool

    def is_left(self, folder: Path) -> bool:
        """Whether it is not done yet."""
        result = read(folder, self.run)
        return not result or (self.bundle and "bundle" not in result)


def left(folder: Path, only: list[Cell] | None = None) -> Iterator[Work]:
    """What is left to do, in order: the sweeps and one score of each cell of a budget, then the other seeds.

    Args:
        folder: Where the results are.
        only: These cells; ``None``: all.
    """
    for budgets in ({0, MAIN_BUDGETS[0]}, {MAIN_BUDGETS[1]}, set(OTHER_BUDGETS)):
        chosen = [cell for cell in only or cells() if cell.budget in budgets]
        for seeds in (SEEDS[:1], SEEDS[1:]):
            for cell in chosen:
                yield from _of_cell(cell, seeds, folder)


def _of_cell(cell: Cell, seeds: tuple[int, ...], folder: Path) -> Iterator[Work]:
    if seeds == SEEDS[:1]:
        yield from (work for run in cell.sweep() if (work := Work(run, bundle=False)).is_left(folder))
    chosen = [run for run in cell.seeds(folder) if run.seed in seeds]
    every = [Work(run, bundle) for bundle in (False, True) for run in chosen]
    yield from (work for work in every if work.is_left(folder))


def counts(folder: Path) -> tuple[int, int]:
    """How many trainings are done, and how many there are in all."""
    each = len(RATES) + len(SEEDS) - 1
    done = sum(len({run.name for run in [*cell.sweep(), *cell.seeds(folder)] if read(folder, run)}) for cell in cells())
    return done, each * len(cells())
