"""What a step of every row costs, and its bundle: ``PYTHONPATH=benchmarks python -m evidence.costs``.

A cost does not depend on what a model has learned, so weights are random. All rows are measured in turns in one run:
what slows the machine down for a while slows all of them. So the times can be compared between the tables.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import torch

import edgemem
from edgemem.evidence import calibrate
from edgemem.export import ExportOptions, export_bundle
from edgemem.files import write_atomic
from edgemem.machine.facts import facts
from evidence import runs, scoring
from evidence.plan import Cell, cells
from evidence.rows import source
from evidence.tasks import TASKS

COSTS = Path(__file__).with_name("costs.json")
ROUNDS = 15

Cost = dict[str, Any]


def read() -> tuple[str, dict[str, Cost]]:
    """Where steps were timed, in words, and the costs of every row by the name of its cell.

    A cost has ``step_us``, ``calibration_us`` and ``engine_bytes``.
    """
    found = json.loads(COSTS.read_text(encoding="utf-8")) if COSTS.exists() else {}
    return found.get("machine", "an unknown machine"), found.get("cells", {})


def measure(chosen: list[Cell], rounds: int = ROUNDS) -> dict[str, Cost]:
    """The costs of those cells: medians of rounds, in each of which every one has its turn.

    Args:
        chosen: What is measured; tasks that give a row the same ends share its cost.
        rounds: How often.
    """
    first = {_of(cell): cell for cell in reversed(chosen)}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bundles = {key: _export(cell, folder / cell.name) for key, cell in _shown([*first.items()], "exporting")}
        sessions = {key: stack.enter_context(edgemem.open(path, threads=1)) for key, path in bundles.items()}
        times: dict[str, list[float]] = {key: [] for key in bundles}
        calibrations = []
        for _ in _shown([*range(rounds)], "measuring"):
            calibrations.append(calibrate())
            for key, session in sessions.items():
                times[key].append(scoring.step_us(session))
        calibration_us = round(statistics.median(calibrations), 3)
        return {
            cell.name: {
                "step_us": round(statistics.median(times[_of(cell)]), 2),
                "calibration_us": calibration_us,
                "engine_bytes": scoring.engine_bytes(bundles[_of(cell)]),
            }
            for cell in chosen
        }


def _of(cell: Cell) -> str:
    """What tells one model of the plan from another, but for its weights."""
    return f"{cell.row} {cell.budget} {TASKS[cell.task].ends}"


def _export(cell: Cell, path: Path) -> Path:
    model = cell.sweep()[0].variant.model(0, **TASKS[cell.task].ends)
    return export_bundle(source(model, cell.name), path, ExportOptions(verify=False)).path


def _shown(items: list[Any], label: str) -> Iterator[Any]:
    with click.progressbar(items, label=label) as bar:
        yield from bar


@click.command()
def main() -> None:
    """Measure every row that has a result, in turns, on a machine that does nothing else."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    scored = [
        cell for cell in cells() if any("bundle" in runs.read(runs.RESULTS, run) for run in cell.seeds(runs.RESULTS))
    ]
    machine = facts()
    found = {"machine": f"one core of {machine.cpu or machine.machine}", "cells": measure(scored)}
    write_atomic(COSTS, (json.dumps(found, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
