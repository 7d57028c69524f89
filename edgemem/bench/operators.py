"""Where a step's time goes, operator by operator, by ONNX Runtime's own profiler."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.bench import measure
from edgemem.bench.measure import Loop, Progress, silent
from edgemem.bench.result import Operator, Operators
from edgemem.bundle import Bundle
from edgemem.runtimes.ort import OrtSession

_KERNEL = "_kernel_time"
_READS_WEIGHTS_BYTES = 1024
"""An operator with as large a constant reads weights; smaller ones are scales, shapes and indices."""
_PRODUCTS = ("MatMul", "Gemm")


def profile(
    bundle: Bundle, *, threads: int | None, device: str, steps: int, warmup: int, progress: Progress = silent
) -> Operators:
    """Stream a bundle in an engine of its own that times every operator.

    Args:
        bundle: The bundle.
        threads: As in :func:`edgemem.open`.
        device: As in :func:`edgemem.open`.
        steps: Steps whose operators are timed; each operator counts with its median.
        warmup: Steps before them.
        progress: Told at the beginning and the end.

    Raises:
        EdgememError: The bundle cannot be opened, or its outputs are not finite.
    """
    progress("operators", 0, 1)
    with tempfile.TemporaryDirectory(prefix="edgemem-profile-") as folder:
        session = OrtSession(bundle, threads=threads, device=device, profile=Path(folder, "step"))
        with session:
            loop = Loop(session.stream(), session.contract)
            measure.run_loop(loop, warmup + steps)
            file = Path(session.engine_for(1).end_profiling())
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
    """The bytes of an operator's constants, by what its event says.

    Weights that were packed for a kernel are not counted as the operator's any more, nor listed among its inputs: a
    matrix product with one input has another that is a matrix.
    """
    counted = int(arguments.get("parameter_size", 0))
    inputs, outputs = (arguments.get(f"{side}_type_shape", []) for side in ("input", "output"))
    if counted or not arguments["op_name"].endswith(_PRODUCTS) or len(inputs) != 1 or len(outputs) != 1:
        return counted
    rows, columns = (next(iter(tensor.values()))[-1] for tensor in (*inputs, *outputs))
    return int(rows * columns * 4)
