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
            weights = int(event["args"].get("parameter_size", 0)) >= _READS_WEIGHTS_BYTES
            kinds[name] = (event["args"]["op_name"], weights)
    total_us: dict[tuple[str, bool], float] = defaultdict(float)
    count: dict[tuple[str, bool], int] = defaultdict(int)
    for name, kind in kinds.items():
        total_us[kind] += float(np.median(durations[name][-steps:]))
        count[kind] += 1
    rows = [Operator(*kind, count[kind], us / 1e3) for kind, us in total_us.items()]
    rows.sort(key=lambda row: (-row.p50_ms, row.name, row.reads_weights))
    return Operators(steps, float(np.median(runs[-steps:])) / 1e3, rows)
