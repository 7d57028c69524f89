"""The rounds in which the bundle at every position, its baselines and the floor take turns."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgemem.bench import baselines, measure
from edgemem.bench.baselines import Ready, Skipped
from edgemem.bench.floor import FloorReady, prepare_device_floor, prepare_floor
from edgemem.bench.loop import Loop, new_stream
from edgemem.bench.positions import steps_to_fill, sweep_contenders
from edgemem.bench.subject import Run

EDGEMEM = "edgemem"


@dataclass(frozen=True)
class Rounds:
    """What was measured in turns.

    Attributes:
        samples: Contender → nanoseconds ``[R, K]``; the bundle's own are called ``edgemem@<position>``.
        positions: Positions of the bundle.
        baselines: The baselines; none if they were not asked for.
        floor: ``None`` if it was not asked for.
    """

    samples: dict[str, NDArray[np.int64]]
    positions: tuple[int, ...]
    baselines: list[Ready | Skipped]
    floor: FloorReady | Skipped | None


def measure_rounds(run: Run) -> Rounds:
    """Measure everything that is compared; call it by :meth:`~edgemem.bench.subject.Run.once`."""
    session, options, plan = run.session, run.options, run.plan
    contract = session.contract
    positions = plan.positions if contract.has_fixed_size else plan.growing_positions
    prepared: list[Ready | Skipped] = []
    floor: FloorReady | Skipped | None = None
    if options.baselines:
        folder = Path(run.stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemem-bench-")))
        prepared = baselines.prepare(session, options.threads, folder, run.stack, run.progress)
        run.progress("preparing: floor", 0, 1)
        if session.device == "cuda":
            floor = prepare_device_floor(session)
        else:
            floor = prepare_floor(session.bundle, options.threads, run.stack)
        run.progress("preparing: floor", 1, 1)
    loop = Loop(new_stream(session), contract)
    contenders = sweep_contenders(EDGEMEM, loop, contract, positions, steps_to_fill(contract))
    contenders += [c for baseline in prepared if isinstance(baseline, Ready) for c in baseline.contenders]
    contenders += floor.contenders if isinstance(floor, FloorReady) else []
    samples = measure.interleave(contenders, rounds=plan.rounds, steps=plan.turn, progress=run.progress)
    loop.check()
    return Rounds(samples, positions, prepared, floor)
