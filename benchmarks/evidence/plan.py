"""What is run, and in which order: breadth first, so that what is there at any moment makes a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from evidence.rows import KIB, ROWS, variant
from evidence.runs import RATES, SEEDS, Run, read
from evidence.tasks import TASKS

MAIN_BUDGETS = (16 * KIB, 64 * KIB)
OTHER_BUDGETS = (4 * KIB, 256 * KIB)
_GROUPS = ((0, 16 * KIB), (64 * KIB,), (4 * KIB,), (256 * KIB,))
"""Budgets that are run together, in this order."""
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

    def leading_rates(self, folder: Path) -> list[float]:
        """The rates whose validation in the sweep is best; none until the sweep is done."""
        return self._best(folder, {run.rate: [run] for run in self.sweep()})

    def best_rate(self, folder: Path) -> float | None:
        """The leading rate. Of several, the best by the mean of all seeds; the first until those are there."""
        leading = self.leading_rates(folder)
        decided = self._best(folder, {rate: self._at(rate) for rate in leading}) or leading
        return decided[0] if decided else None

    def _best(self, folder: Path, runs: dict[float, list[Run]]) -> list[float]:
        """The rates whose runs have the best mean validation; none until all are done. A diverged run is not."""
        found = {rate: [read(folder, run) for run in of_rate] for rate, of_rate in runs.items()}
        if not all(all(results) for results in found.values()):
            return []
        means = {rate: fmean(result["validation"] for result in results) for rate, results in found.items()}
        finite = {rate: mean for rate, mean in means.items() if math.isfinite(mean)}
        if not finite:
            return list(means)[:1]
        best = (max if TASKS[self.task].more_is_better else min)(finite.values())
        return [rate for rate, mean in finite.items() if mean == best]

    def seeds(self, folder: Path) -> list[Run]:
        """Every seed at the best rate; none until the sweep is done."""
        rate = self.best_rate(folder)
        return [] if rate is None else self._at(rate)

    def trainings(self, folder: Path) -> list[Run]:
        """Every seed at every leading rate: what decides between rates that tie in the sweep."""
        return [run for rate in self.leading_rates(folder) for run in self._at(rate)]

    def _at(self, rate: float) -> list[Run]:
        return [Run(self.row, self.budget, self.task, rate, seed) for seed in SEEDS]


def cells() -> list[Cell]:
    """Every cell, in the order in which they are run."""
    keys = [*_FIRST_ROWS, *(key for key in ROWS if key not in _FIRST_ROWS)]
    return [
        Cell(key, budget, task)
        for budgets in _GROUPS
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
    for budgets in _GROUPS:
        chosen = [cell for cell in only or cells() if cell.budget in budgets]
        for seeds in (SEEDS[:1], SEEDS[1:]):
            for cell in chosen:
                yield from _of_cell(cell, seeds, folder)


def _of_cell(cell: Cell, seeds: tuple[int, ...], folder: Path) -> Iterator[Work]:
    if seeds == SEEDS[:1]:
        yield from (work for run in cell.sweep() if (work := Work(run, bundle=False)).is_left(folder))
    trained = [Work(run, bundle=False) for run in cell.trainings(folder) if run.seed in seeds]
    yield from (work for work in trained if work.is_left(folder))
    scored = [Work(run, bundle=True) for run in cell.seeds(folder) if run.seed in seeds]
    yield from (work for work in scored if work.is_left(folder))


def counts(folder: Path) -> tuple[int, int]:
    """How many trainings are done, and how many there are in all."""
    each = len(RATES) + len(SEEDS) - 1
    done = sum(len({run.name for run in [*cell.sweep(), *cell.seeds(folder)] if read(folder, run)}) for cell in cells())
    return done, each * len(cells())
