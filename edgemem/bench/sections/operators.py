"""Time of a step by operator, from ONNX Runtime's profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.bench import measure, words
from edgemem.bench.loop import Loop, new_stream
from edgemem.bench.measure import Progress, silent
from edgemem.bench.positions import steps_to_fill
from edgemem.bench.result import BenchResult, NotMeasured, Section, Stage
from edgemem.bench.subject import Run
from edgemem.bench.table import Table
from edgemem.bench.words import NOT_MEASURED, ms
from edgemem.bundle import Bundle
from edgemem.runtimes.ort.engine import OrtSession

_LEAST_SHARE = 0.01
"""Of the time of a step: kinds of operators below it share a row."""
_KERNEL = "_kernel_time"
_READS_WEIGHTS_BYTES = 1024
"""An operator with a constant of this size reads weights; smaller ones are scales, shapes and indices."""
_PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class Operator:
    """All operators of one kind in a step.

    Attributes:
        name: Their type, as the engine calls it after fusion.
        reads_weights: Whether they multiply with stored weights or look them up. The others work on states and
            intermediate results.
        count: Number of operators.
        p50_ms: Sum of their medians.
    """

    name: str
    reads_weights: bool
    count: int
    p50_ms: float


@dataclass(frozen=True)
class Operators(
    Section,
    key="operators",
    title="Time by operator",
    place=80,
    stage=Stage.OTHER_SESSION,
    gives_reason=True,
    on_request=True,
):
    """Time of a step by kind of operator, the longest first, from a separate run.

    Attributes:
        steps: Steps that were timed.
        run_p50_ms: One run of the engine under its profiler, which makes it slower.
        kinds: The operators.
    """

    steps: int
    run_p50_ms: float
    kinds: list[Operator]

    @classmethod
    def measure(cls, run: Run) -> Operators | NotMeasured | None:
        session, options, plan = run.session, run.options, run.plan
        if not options.operators:
            return None
        if session.runtime != "onnxruntime":
            return NotMeasured(f"the runtime {session.runtime!r} has no profile of its operators; onnxruntime has one")
        return profile(
            session.bundle,
            threads=options.threads,
            device=session.device,
            steps=min(plan.steps, plan.profiled_steps),
            warmup=steps_to_fill(session.contract) if session.contract.max_position is None else 0,
            progress=run.progress,
        )

    def tables(self, result: BenchResult) -> list[Table]:
        total, weights = _sum(self.kinds), _sum([kind for kind in self.kinds if kind.reads_weights])
        large = [kind for kind in self.kinds if kind.p50_ms >= _LEAST_SHARE * total]
        small = self.kinds[len(large) :]
        rows = [_row(kind.name, "weights" if kind.reads_weights else "", [kind], total) for kind in large]
        if small:
            rows.append(_row(f"{words.count(len(small))} more", "", small, total))
        rows.append(_row("all", "", self.kinds, total))
        note = (
            f"Operators that read weights take {ms(weights)}, the others {ms(total - weights)}. Measured over "
            f"{words.count(self.steps)} steps of a separate run under the engine's profiler, which counts whole "
            f"microseconds and adds about one to each operator. A run took {ms(self.run_p50_ms)} there."
        )
        columns = ("operator", "reads", "number", "p50", "share")
        return [Table(self.key, self.title, columns, rows, ("number", "p50", "share"), [note])]


def _sum(kinds: list[Operator]) -> float:
    return sum(kind.p50_ms for kind in kinds)


def _row(name: str, reads: str, kinds: list[Operator], total_ms: float) -> tuple[str, ...]:
    share = f"{_sum(kinds) / total_ms:.1%}" if total_ms else NOT_MEASURED
    return name, reads, words.count(sum(kind.count for kind in kinds)), ms(_sum(kinds)), share


def profile(
    bundle: Bundle, *, threads: int | None, device: str, steps: int, warmup: int, progress: Progress = silent
) -> Operators:
    """Stream a bundle in a separate engine that times every operator.

    Args:
        bundle: The bundle.
        threads: As in :func:`edgemem.open`.
        device: As in :func:`edgemem.open`.
        steps: Steps whose operators are timed; the median of each operator counts.
        warmup: Steps before them.
        progress: Called at the beginning and the end.

    Raises:
        EdgememError: The bundle cannot be opened, or its outputs are not finite.
    """
    progress("operators", 0, 1)
    with tempfile.TemporaryDirectory(prefix="edgemem-profile-") as folder:
        session = OrtSession(bundle, threads=threads, device=device, profile=Path(folder, "step"))
        with session:
            loop = Loop(new_stream(session), session.contract)
            measure.run_loop(loop, warmup + steps)
            file = Path(session.engine.graph_for(1)[1].end_profiling())
        events = json.loads(file.read_text(encoding="utf-8"))
    progress("operators", 1, 1)
    return summarise(events, steps)


def summarise(events: list[dict[str, Any]], steps: int) -> Operators:
    """The last ``steps`` runs of a profile, by kind of operator, the longest first."""
    durations: dict[str, list[int]] = defaultdict(list)  # of each node, in µs
    kinds: dict[str, tuple[str, bool]] = {}
    runs = []
    for event in events:
        name = event["name"]
        if name == "model_run":
            runs.append(event["dur"])
        elif name.endswith(_KERNEL):
            durations[name].append(event["dur"])
            kinds[name] = (event["args"]["op_name"], _weight_bytes(event["args"]) >= _READS_WEIGHTS_BYTES)
    total_us: dict[tuple[str, bool], float] = defaultdict(float)
    count: dict[tuple[str, bool], int] = defaultdict(int)
    for name, kind in kinds.items():
        total_us[kind] += float(np.median(durations[name][-steps:]))
        count[kind] += 1
    rows = [Operator(*kind, count[kind], us / 1e3) for kind, us in total_us.items()]
    rows.sort(key=lambda row: (-row.p50_ms, row.name, row.reads_weights))
    return Operators(steps, float(np.median(runs[-steps:])) / 1e3, rows)


def _weight_bytes(arguments: dict[str, Any]) -> int:
    """The bytes of an operator's constants, as far as its event tells.

    Weights that were packed for a kernel are no longer counted, nor listed as an input: a matrix product with one input
    has such a matrix as its other one.
    """
    counted = int(arguments.get("parameter_size", 0))
    inputs, outputs = (arguments.get(f"{side}_type_shape", []) for side in ("input", "output"))
    if counted or not arguments["op_name"].endswith(_PRODUCTS) or len(inputs) != 1 or len(outputs) != 1:
        return counted
    rows, columns = (next(iter(tensor.values()))[-1] for tensor in (*inputs, *outputs))
    return int(rows * columns * 4)
