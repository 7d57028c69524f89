"""The whole benchmark, in order: open, step, sweep the position, prefill, keep a deadline, idle, compare."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgemem
from edgemem.bench import baselines, environment, measure, statistics
from edgemem.bench.baselines import FloorReady, Ready, Skipped
from edgemem.bench.comparison import EDGEMEM, compare, median_ms
from edgemem.bench.measure import Loop, Progress, silent
from edgemem.bench.result import (
    BenchResult,
    Comparison,
    Deadline,
    IdleGap,
    Memory,
    Opening,
    Prefill,
    Steps,
    Subject,
    Sweep,
)
from edgemem.contract import Contract
from edgemem.runtimes import Session

COMPARED_FROM = 1_000
"""The bundle is compared where it stands at this position, or at the next one that is measured."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        steps: Steps of the main loop.
        warmup: Steps before them.
        positions: Positions of the sweep, where the state has a fixed size.
        growing_positions: Positions of the sweep of a bundle whose state grows.
        rounds: Turns of each contender; 6 or more carry an interval.
        turn: Timed steps of a turn.
        prefill: Time steps of the long input.
        prefill_rounds: How often it is fed.
        paced_seconds: Length of the paced loop.
        idle_steps: Steps after an idle gap.
    """

    steps: int = 2_000
    warmup: int = 50
    positions: tuple[int, ...] = (0, 1_000, 10_000, 100_000, 1_000_000, 10_000_000)
    growing_positions: tuple[int, ...] = (16, 256, 1_024, 4_096)
    rounds: int = 15
    turn: int = 10
    prefill: int = 4_096
    prefill_rounds: int = 7
    paced_seconds: float = 10.0
    idle_steps: int = 40

    @classmethod
    def quick(cls) -> Plan:
        """Enough to see that everything works; the figures are rough."""
        return cls(
            steps=200, warmup=10, positions=(0, 1_000, 100_000, 1_000_000), growing_positions=(16, 256, 1_024),
            rounds=6, turn=5, prefill=512, prefill_rounds=3, paced_seconds=2.0, idle_steps=20,
        )  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        runtime: As in :func:`edgemem.open`.
        device: As in :func:`edgemem.open`.
        threads: As in :func:`edgemem.open`; the baselines get as many.
        rate_hz: Pace of the loop with deadlines; ``None``: none is run.
        idle_gap_ms: Pause before each step of the idle mode; ``None``: it is not run.
        baselines: Whether to compare.
        quick: Whether ``plan`` is the quick one.
    """

    runtime: str = "auto"
    device: str = "auto"
    threads: int | None = None
    rate_hz: float | None = None
    idle_gap_ms: float | None = None
    baselines: bool = True
    quick: bool = False


def run(path: str | Path, options: Options, plan: Plan, progress: Progress = silent) -> BenchResult:
    """Measure a bundle.

    Args:
        path: The bundle.
        options: What is measured.
        plan: How much of it.
        progress: Told between timed sections.

    Returns:
        The complete result; there is no partial one.

    Raises:
        EdgememError: The bundle cannot be opened, or its outputs are not finite.
    """
    began = time.perf_counter()
    load_before = environment.load_average()
    resident_before = environment.resident_bytes()
    progress("opening", 0, 1)
    opened = time.perf_counter_ns()
    session = edgemem.open(path, runtime=options.runtime, threads=options.threads, device=options.device)
    open_ms = (time.perf_counter_ns() - opened) / 1e6
    with session, contextlib.ExitStack() as stack:
        opening, loop = _first_step(session, open_ms)
        progress("opening", 1, 1)
        resident_opened = environment.resident_bytes()
        steps = _steps(loop, plan, progress)
        memory = _memory(session, resident_before, resident_opened)
        prefill, prefill_skipped = _prefill(session, plan, progress)
        deadline = _deadline(loop, options.rate_hz, plan, progress)
        idle = _idle(loop, options.idle_gap_ms, plan, progress)
        sweep, comparison = _rounds(session, options, plan, progress, stack)
        return BenchResult(
            subject=_subject(session),
            environment=environment.describe(options.threads, load_before),
            opening=opening,
            steps=steps,
            sweep=sweep,
            prefill=prefill,
            prefill_skipped=prefill_skipped,
            memory=memory,
            deadline=deadline,
            idle=idle,
            comparison=comparison,
            quick=options.quick,
            duration_s=time.perf_counter() - began,
        )


def _subject(session: Session) -> Subject:
    manifest = session.bundle.manifest
    return Subject(
        path=str(session.bundle.path),
        fingerprint=session.bundle.fingerprint,
        source=manifest.source,
        runtime=session.runtime,
        device=session.device,
        input_meaning=manifest.input_meaning,
        is_tokens=session.contract.input.is_tokens,
        states=len(session.contract.states),
        has_fixed_size=session.contract.has_fixed_size,
    )


def _first_step(session: Session, open_ms: float) -> tuple[Opening, Loop]:
    start = time.perf_counter_ns()
    stream = session.stream()
    stream_ms = (time.perf_counter_ns() - start) / 1e6
    loop = Loop(stream, session.contract)
    first = measure.time_steps(loop.step, np.zeros(1, dtype=np.int64), loop.choose)
    loop.check()
    return Opening(open_ms, stream_ms, float(first[0]) / 1e6), loop


def _steps(loop: Loop, plan: Plan, progress: Progress) -> Steps:
    measure.run_loop(loop, plan.warmup, progress, "warm-up")
    samples, seconds = measure.run_loop(loop, plan.steps, progress, "steps")
    return Steps(plan.warmup, statistics.distribution(samples), plan.steps / seconds)


def _memory(session: Session, before: int, opened: int) -> Memory:
    bundle = session.bundle
    return Memory(
        weights_bytes=bundle.weights_bytes,
        graphs_bytes=sum(bundle.manifest.files[graph.file][1] for graph in bundle.manifest.graphs),
        state_bytes=session.contract.state_bytes,
        resident_before_open_bytes=before,
        resident_opened_bytes=opened,
        resident_measured_bytes=environment.resident_bytes(),
        peak_bytes=environment.peak_bytes(),
    )


def seed_steps(contract: Contract) -> int:
    """Steps after which every ring has wrapped, so that an injected state is one that a long stream has."""
    return 16 + max((state.window or 0 for state in contract), default=0)


def _prefill(session: Session, plan: Plan, progress: Progress) -> tuple[Prefill | None, str | None]:
    if session.max_time == 1:
        return None, "the bundle takes one time step a call"
    return prefill(session, plan.prefill, plan.prefill_rounds, 2 * plan.turn, progress), None


def prefill(session: Session, length: int, rounds: int, steps: int, progress: Progress = silent) -> Prefill:
    """Measure a long input against stepping.

    Args:
        session: The model.
        length: Time steps of the input.
        rounds: How often it is fed.
        steps: Single steps timed in each round, whose median stands for all of them.
        progress: Told after each round.
    """
    fed, stepped = measure.prefill(Loop(session.stream(), session.contract), length, rounds, steps, progress)
    p50_ms = median_ms(fed)
    return Prefill(
        length=length,
        chunk=session.max_time,
        p50_ms=p50_ms,
        steps_per_second=length / p50_ms * 1e3,
        speedup=statistics.ratio(stepped * length, fed),
    )


def resident_growth(path: str | Path, steps: int, threads: int | None = None) -> tuple[int, int]:
    """Step a stream, and see whether the process grows. Call it in a process of its own.

    A process that has freed much memory before could hide a leak in it.

    Args:
        path: The bundle.
        steps: Steps to take after the warm-up, rounded up to whole thousands.
        threads: As in :func:`edgemem.open`.

    Returns:
        Resident bytes after the warm-up, and how many more there were at the end.
    """
    block = 1_000
    with edgemem.open(path, threads=threads) as session:
        loop = Loop(session.stream(), session.contract)
        for _ in range(5):
            measure.run_loop(loop, block)
        before = environment.resident_bytes()
        for _ in range(-(-steps // block)):
            measure.run_loop(loop, block)
        return before, environment.resident_bytes() - before


def _deadline(loop: Loop, rate_hz: float | None, plan: Plan, progress: Progress) -> Deadline | None:
    if rate_hz is None:
        return None
    steps = max(20, round(rate_hz * plan.paced_seconds))
    progress("paced loop", 0, 1)
    measured = measure.pace(loop.step, loop.choose, rate_hz, steps)
    loop.check()
    progress("paced loop", 1, 1)
    return measured


def _idle(loop: Loop, gap_ms: float | None, plan: Plan, progress: Progress) -> IdleGap | None:
    return None if gap_ms is None else measure.idle_gaps(loop, gap_ms, plan.idle_steps, progress)


def _rounds(
    session: Session, options: Options, plan: Plan, progress: Progress, stack: contextlib.ExitStack
) -> tuple[Sweep, Comparison | None]:
    """The sweep over positions and everything it is compared with, all in the same rounds."""
    contract = session.contract
    positions = plan.positions if contract.has_fixed_size else plan.growing_positions
    prepared: list[Ready | Skipped] = []
    floor: FloorReady | Skipped | None = None
    if options.baselines:
        progress("preparing the baselines", 0, 1)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemem-bench-")))
        prepared = baselines.prepare(session, options.threads, folder, stack)
        floor = baselines.prepare_floor(session.bundle, options.threads, stack)
        progress("preparing the baselines", 1, 1)
    loop = Loop(session.stream(), contract)
    contenders = measure.sweep_contenders(EDGEMEM, loop, contract, positions, seed_steps(contract))
    contenders += [c for baseline in prepared if isinstance(baseline, Ready) for c in baseline.contenders]
    contenders += floor.contenders if isinstance(floor, FloorReady) else []
    samples = measure.interleave(contenders, rounds=plan.rounds, steps=plan.turn, progress=progress)
    loop.check()
    sweep = measure.sweep_of(EDGEMEM, samples, contract, positions)
    if floor is None:
        return sweep, None
    own = next(p for p in positions if p >= COMPARED_FROM)
    return sweep, compare(prepared, floor, samples, f"{EDGEMEM}@{own}", plan.positions)
