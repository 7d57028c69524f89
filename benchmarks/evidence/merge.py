"""All results as the one compact file that the package brings, which ``edgemem choose`` and the page read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgemem.evidence import EVIDENCE, FILE
from edgemem.files import write_atomic
from evidence import costs
from evidence.plan import Cell, cells
from evidence.rows import KIB, ROWS, variant
from evidence.runs import RATES, RESULTS, read
from evidence.tasks import TASKS

FREE: costs.Cost = {"step_us": 0.0, "calibration_us": 1.0, "engine_bytes": 0}


def merged(folder: Path = RESULTS, *, scores_alone: bool = False) -> dict[str, Any]:
    """The content of the package's file, from the results in ``folder`` and the costs.

    Args:
        folder: Where the results are.
        scores_alone: Rows whose cost was not measured yet cost nothing, instead of an error.
    """
    entries: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    missing: dict[str, list[str]] = {task: [] for task in TASKS}
    machine, measured = costs.read()
    unknown = FREE if scores_alone else None
    for cell in cells():
        entry = _entry(cell, folder, measured.get(cell.name, unknown))
        if entry is None:
            size = f" at {cell.budget // KIB} KiB" if cell.budget else ""
            missing[cell.task].append(f"{ROWS[cell.row].label}{size}")
        else:
            entries[cell.task].append(entry)
    return EVIDENCE.stamp({"machine": machine, "entries": entries, "not_tried": missing})


def _entry(cell: Cell, folder: Path, cost: costs.Cost | None) -> dict[str, Any] | None:
    """A cell's seeds that were scored through a bundle, and what it costs; ``None`` if there is none."""
    found = [result for run in cell.seeds(folder) if "bundle" in (result := read(folder, run))]
    made = variant(cell.row, cell.budget)
    if not found or made is None:
        return None
    if cost is None:
        raise SystemExit(f"{cell.name} has no cost yet. Run: make evidence-costs")
    first = found[0]
    scores = {name: [round(result["bundle"][name], 5) for result in found] for name in first["bundle"]}
    return {
        **{name: first[name] for name in ("row", "label", "turned", "budget", "state_bytes", "rate")},
        "memory": made.made.memory,
        "rates": list(RATES),
        "scores": scores,
        **cost,
    }


def encoded(data: dict[str, Any]) -> bytes:
    """One entry a line."""
    tasks = ",\n".join(
        f"  {json.dumps(task)}: [\n" + ",\n".join(f"   {json.dumps(entry)}" for entry in entries) + "\n  ]"
        for task, entries in data["entries"].items()
    )
    rest = {name: value for name, value in data.items() if name != "entries"}
    head = json.dumps(rest, indent=1)[:-2]
    return f'{head},\n "entries": {{\n{tasks}\n }}\n}}\n'.encode()


def write() -> None:
    """Write the package's file."""
    write_atomic(FILE, encoded(merged()))
