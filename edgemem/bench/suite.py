"""The whole benchmark, in order: open, step, energy, prefill, keep a deadline, idle, sweep the position and compare."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import edgemem
from edgemem.bench import baselines, environment, measure, operators, statistics
from edgemem.bench.baselines import FloorReady, Ready, Skipped
from edgemem.bench.comparison import EDGEMEM, compare, median_ms
from edgemem.bench.devices.energy import Sampler
from edgemem.bench.devices.events import StepTimer
from edgemem.bench.devices.found import Devices, cuda_memory, devices_of, throttled
from edgemem.bench.devices.memory import proportional_bytes
from edgemem.bench.measure import Loop, Progress, silent
from edgemem.bench.result import (
    BenchResult,
    Comparison,
    Conditions,
    Deadline,
    DeviceState,
    Energy,
    GpuTime,
    IdleGap,
    Memory,
    Opening,
    Operators,
    Prefill,
    Steps,
    Subject,
    Sweep,
)
from edgemem.contract import Contract
from edgemem.machine.facts import load_average
from edgemem.machine.memory import available_bytes, peak_bytes, resident_bytes
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
        energy_seconds: Length of the run whose joules are measured, where there is a power sensor.
        gpu_steps: Steps timed by events, on a GPU.
        profiled_steps: Steps whose operators are timed one by one.
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
    energy_seconds: float = 12.0
    gpu_steps: int = 500
    profiled_steps: int = 500

    @classmethod
    def quick(cls) -> Plan:
        """Enough to see that everything works; the figures are rough."""
        return cls(
            steps=200, warmup=10, positions=(0, 1_000, 100_000, 1_000_000), growing_positions=(16, 256, 1_024),
            rounds=6, turn=5, prefill=512, prefill_rounds=3, paced_seconds=2.0, idle_steps=20,
            energy_seconds=3.0, gpu_steps=100, profiled_steps=100,
        )  # fmt: skip

    def within(self, contract: Contract) -> Plan:
        """This plan, kept within the length of stream that a model takes."""
        limit = contract.max_position
        if limit is None:
            return self
        inside = {p for p in self.positions if p < limit} | {limit // 2, limit - limit // 8}
        return replace(self, positions=tuple(sorted(inside)), prefill=min(self.prefill, limit))


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
        operators: Whether to time every operator.
        quick: Whether ``plan`` is the quick one.
    """

    runtime: str = "auto"
    device: str = "auto"
    threads: int | None = None
    rate_hz: float | None = None
    idle_gap_ms: float | None = None
    baselines: bool = True
    operators: bool = False
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
    load_before = load_average()
    resident_before, available_before = resident_bytes(), available_bytes()
    progress("opening", 0, 1)
    opened = time.perf_counter_ns()
    session = edgemem.open(path, runtime=options.runtime, threads=options.threads, device=options.device)
    open_ms = (time.perf_counter_ns() - opened) / 1e6
    plan = plan.within(session.contract)
    with session, contextlib.ExitStack() as stack:
        opening, loop = _first_step(session, open_ms)
        progress("opening", 1, 1)
        resident_opened = resident_bytes()
        devices = devices_of(session, loop.stream)
        before = devices.state()
        steps = _steps(loop, plan, progress)
        loaded = devices.state()
        memory = _memory(session, devices, resident_before, resident_opened, available_before)
        gpu_time, gpu_time_skipped = _gpu_time(session, loop, plan, progress)
        energy, energy_skipped = _energy(loop, devices, plan, progress)
        prefill, prefill_skipped = _prefill(session, plan, progress)
        deadline = _deadline(loop, options.rate_hz, plan, progress)
        idle = _idle(loop, options.idle_gap_ms, plan, progress)
        sweep, comparison = _rounds(session, options, plan, progress, stack)
        operators, operators_skipped = _operators(session, options, plan, progress)
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
            conditions=_conditions(devices, before, loaded),
            energy=energy,
            energy_skipped=energy_skipped,
            gpu_time=gpu_time,
            gpu_time_skipped=gpu_time_skipped,
            operators=operators,
            operators_skipped=operators_skipped,
            quick=options.quick,
            duration_s=time.perf_counter() - began,
        )


def _subject(session: Session) -> Subject:
    manifest = session.bundle.manifest
    return Subject(
        path=str(session.bundle.path),
        fingerprint=session.bundle.fingerprint,
        source=manifest.source.to_json(),
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


def _conditions(devices: Devices, before: DeviceState, loaded: DeviceState) -> Conditions:
    after = devices.state()
    return Conditions(before, loaded, after, throttled(before, loaded, after), devices.problems)


def _energy(loop: Loop, devices: Devices, plan: Plan, progress: Progress) -> tuple[Energy | None, str | None]:
    if not devices.sensors:
        return None, devices.no_power
    progress("energy", 0, 1)
    with Sampler(devices.sensors) as sampler:
        steps = measure.run_for(loop, plan.energy_seconds)
    loop.check()
    progress("energy", 1, 1)
    return Energy(steps, sampler.seconds, sampler.rails(steps)), None


def _gpu_time(session: Session, loop: Loop, plan: Plan, progress: Progress) -> tuple[GpuTime | None, str | None]:
    if session.device != "cuda":
        return None, None
    memory = cuda_memory(loop.stream)
    if memory is None:
        return None, f"runtime {session.runtime!r} has a stream of its own"
    progress("GPU time", 0, 1)
    with StepTimer(memory) as timer:
        for _ in range(plan.gpu_steps):
            timer.time(loop.step)
            loop.choose()
    loop.check()
    progress("GPU time", 1, 1)
    measured = timer.result()
    return measured, None if measured else f"runtime {session.runtime!r} issued nothing that could be seen"


def _operators(
    session: Session, options: Options, plan: Plan, progress: Progress
) -> tuple[Operators | None, str | None]:
    if not options.operators:
        return None, None
    if session.runtime != "onnxruntime":
        return None, f"runtime {session.runtime!r} has no profile of its operators; onnxruntime has"
    steps = min(plan.steps, plan.profiled_steps)
    found = operators.profile(
        session.bundle,
        threads=options.threads,
        device=session.device,
        steps=steps,
        warmup=seed_steps(session.contract) if session.contract.max_position is None else 0,
        progress=progress,
    )
    return found, None


def _memory(session: Session, devices: Devices, before: int, opened: int, available_before: int | None) -> Memory:
    bundle = session.bundle
    available = available_bytes()
    return Memory(
        weights_bytes=bundle.weights_bytes,
        graphs_bytes=sum(bundle.manifest.files[graph.file][1] for graph in bundle.manifest.graphs),
        state_bytes=session.contract.state_bytes,
        resident_before_open_bytes=before,
        resident_opened_bytes=opened,
        resident_measured_bytes=resident_bytes(),
        peak_bytes=peak_bytes(),
        proportional_bytes=proportional_bytes(),
        gpu_bytes=devices.gpu.process_bytes() if devices.gpu is not None else None,
        is_integrated=devices.is_integrated,
        available_fall_bytes=(
            available_before - available if available_before is not None and available is not None else None
        ),
    )


def seed_steps(contract: Contract) -> int:
    """Steps after which every ring has wrapped, so that an injected state is one that a long stream has.

    A model that takes so many time steps and no more has rings that never wrap: they are all but filled.
    """
    steps = 16 + max((state.window or 0 for state in contract), default=0)
    return steps if contract.max_position is None else min(steps, contract.max_position - 1)


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
        before = resident_bytes()
        for _ in range(-(-steps // block)):
            measure.run_loop(loop, block)
        return before, resident_bytes() - before


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
        if session.device == "cuda":
            floor = baselines.prepare_device_floor(session)
        else:
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
    own = next((p for p in positions if p >= COMPARED_FROM), positions[-1])
    return sweep, compare(prepared, floor, samples, f"{EDGEMEM}@{own}", plan.positions)
