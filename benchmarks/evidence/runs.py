"""One run: a model is trained and scored in torch; at a cell's best learning rate it is scored through its bundle."""

from __future__ import annotations

import io
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import edgemem
from edgemem.export import ExportOptions, export_bundle
from edgemem.files import write_atomic
from evidence import scoring
from evidence.rows import Model, Variant, parameters, source, variant
from evidence.tasks import TASKS, Task

from training import train  # isort: skip

RATES = (1e-3, 3e-3, 1e-2)
"""The learning rates of every sweep."""
SEEDS = (0, 1, 2)
"""The first is that of the sweep; the others are trained at the sweep's best rate."""
RESULTS = Path(__file__).with_name("results")
_WORK = ".work"


@dataclass(frozen=True, order=True)
class Run:
    """A training.

    Attributes:
        row: Key of the row.
        budget: Bytes of a stream's state; 0 for one that grows.
        task: Name of the task.
        rate: The highest learning rate.
        seed: Of the weights and of the data.
    """

    row: str
    budget: int
    task: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its file, without the ending."""
        return f"{self.task}-{self.budget // 1024}K-{self.row}-{self.rate:g}-{self.seed}"

    @property
    def variant(self) -> Variant:
        """Its row at its budget."""
        found = variant(self.row, self.budget)
        assert found is not None
        return found


def trained(run: Run, task: Task) -> Model:
    """The model that a run trains, the same at every call on the same machine."""
    model = run.variant.model(run.seed, **task.ends)
    train(
        model,
        task.draw,
        task.loss,
        lambda model: math.nan,
        name=run.name,
        metric=task.metric,
        item="steps",
        steps=task.of_steps,
        learning_rate=run.rate,
        seed=run.seed,
        evaluations=1,
        on=Console(file=io.StringIO()),
    )
    return model


def perform(run: Run, folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Train and score in torch, write the result to ``folder``, and keep the weights until the bundle is scored."""
    task = TASKS[run.task](steps)
    began = time.thread_time()
    model = trained(run, task)
    seconds = time.thread_time() - began
    validation = scoring.in_torch(model, task.validation())
    result = {
        **asdict(run),
        "label": run.variant.row.label,
        "turned": run.variant.made.turned,
        "state_bytes": model.contract().state_bytes,
        "parameters": parameters(model),
        "steps": task.of_steps,
        "train_s": round(seconds, 1),
        "validation": sum(validation.values()) / len(validation),
        "torch": scoring.in_torch(model, task.exams()),
    }
    torch.save(model.state_dict(), work_folder(folder) / run.name)
    _write(folder, run, result)
    return result


def score_bundle(run: Run, folder: Path, steps: int | None = None) -> dict[str, Any]:
    """Export what a run trained, score it through the bundle, and add that to its result.

    The weights are taken from ``folder``, or trained again if they are not there.
    """
    task = TASKS[run.task](steps)
    weights = work_folder(folder) / run.name
    if weights.exists():
        model = run.variant.model(run.seed, **task.ends)
        model.load_state_dict(torch.load(weights))
    else:
        model = trained(run, task)
    result = read(folder, run)
    exams = task.exams()
    with tempfile.TemporaryDirectory() as work:
        bundle = Path(work) / "bundle"
        export_bundle(source(model, run.name), bundle, ExportOptions(verify=False))
        session = edgemem.open(bundle, threads=1)
        scores = scoring.through_bundle(session, exams)
        result |= {
            "bundle": scores,
            "difference": scoring.largest_difference(scores, result["torch"]),
            "output_difference": scoring.output_difference(session, model, exams[0]),
        }
    _write(folder, run, result)
    weights.unlink(missing_ok=True)
    return result


def work_folder(folder: Path) -> Path:
    """Where weights and locks lie: what may be deleted at any moment."""
    made = folder / _WORK
    made.mkdir(parents=True, exist_ok=True)
    return made


def read(folder: Path, run: Run) -> dict[str, Any]:
    """The result of a run; empty if it is not there."""
    path = folder / f"{run.name}.json"
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _write(folder: Path, run: Run, result: dict[str, Any]) -> None:
    write_atomic(folder / f"{run.name}.json", (json.dumps(result, indent=1) + "\n").encode())
