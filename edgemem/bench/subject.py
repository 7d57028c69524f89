"""What is measured: a bundle, opened as asked, and what its manifest tells about it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, auto
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np

import edgemem
from edgemem.bench.devices.found import Devices, devices_of
from edgemem.bench.loop import Loop, new_stream
from edgemem.bench.measure import Progress, time_steps
from edgemem.bundle import Bundle
from edgemem.contract import Contract
from edgemem.runtimes import Session

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        steps: Steps of the main loop.
        warmup: Steps before them.
        positions: Positions of the sweep, for a state of fixed size.
        growing_positions: Positions of the sweep, for a state that grows.
        rounds: Turns of each contender; an interval needs 6 or more.
        turn: Timed steps of a turn.
        prefill: Time steps of the long input.
        prefill_rounds: How often it is fed.
        paced_seconds: Length of the paced loop.
        idle_steps: Steps after an idle gap.
        energy_seconds: Length of the run whose energy is measured, if there is a power sensor.
        gpu_steps: Steps that are timed by events, on a GPU.
        profiled_steps: Steps whose operators are timed.
        fed: Time steps of the prefill among the rates.
        decoded: Steps of a turn of decoding among the rates.
        depths: Positions at which the rates decode.
        rate_rounds: Turns of each rate.
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
    fed: int = 512
    decoded: int = 128
    depths: tuple[int, ...] = (0, 4_096, 16_384, 32_768)
    rate_rounds: int = 6

    @classmethod
    def quick(cls) -> Plan:
        """Enough to see that everything works; the figures are rough."""
        return cls(
            steps=200, warmup=10, positions=(0, 1_000, 100_000, 1_000_000), growing_positions=(16, 256, 1_024),
            rounds=6, turn=5, prefill=512, prefill_rounds=3, paced_seconds=2.0, idle_steps=20,
            energy_seconds=3.0, gpu_steps=100, profiled_steps=100, decoded=32, rate_rounds=2,
        )  # fmt: skip

    def within(self, contract: Contract) -> Plan:
        """This plan, limited to the longest position of a model."""
        limit = contract.max_position
        if limit is None:
            return self
        inside = {p for p in self.positions if p < limit} | {limit // 2, limit - limit // 8}
        return replace(
            self, positions=tuple(sorted(inside)), prefill=min(self.prefill, limit), fed=min(self.fed, limit)
        )


@dataclass(frozen=True)
class Options:
    """What is measured.

    Attributes:
        runtime: As in :func:`edgemem.open`.
        device: As in :func:`edgemem.open`.
        threads: As in :func:`edgemem.open`; the baselines get as many.
        rate_hz: Rate of the loop with deadlines; ``None``: it is not run.
        idle_gap_ms: Pause before each step of the idle loop; ``None``: it is not run.
        baselines: Whether to compare.
        operators: Whether to time every operator.
        quick: Whether the plan is the quick one.
        more_threads: Other numbers of threads whose rates are measured too.
        batches: Numbers of streams in one call whose rates are measured too.
        pinned: The cores that this process was pinned to; empty: all that it may use.
        command: The command line, for the report.
    """

    runtime: str = "auto"
    device: str = "auto"
    threads: int | None = None
    rate_hz: float | None = None
    idle_gap_ms: float | None = None
    baselines: bool = True
    operators: bool = False
    quick: bool = False
    more_threads: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    pinned: tuple[int, ...] = ()
    command: str = ""


@dataclass(frozen=True)
class Subject:
    """What was measured."""

    path: str
    fingerprint: str
    source: dict[str, Any]
    runtime: str
    device: str
    input_meaning: str
    is_tokens: bool
    states: int
    has_fixed_size: bool
    form: str = ""

    @classmethod
    def of(cls, session: Session) -> Subject:
        """The subject of a session."""
        manifest = session.bundle.manifest
        return cls(
            path=str(session.bundle.path),
            fingerprint=session.bundle.fingerprint,
            source=manifest.source.to_json(),
            runtime=session.runtime,
            device=session.device,
            input_meaning=manifest.input_meaning,
            is_tokens=session.contract.input.is_tokens,
            states=len(session.contract.states),
            has_fixed_size=session.contract.has_fixed_size,
            form=session.engine.form,
        )

    @property
    def name(self) -> str:
        """Name of the model."""
        return PurePath(str(self.source.get("name") or self.path)).name

    @property
    def unit(self) -> str:
        """Plural of what one step takes."""
        return "tokens" if self.is_tokens else "steps"

    @property
    def legend(self) -> str:
        """Name of the bundle in a plot."""
        return "edgemem" if self.has_fixed_size else "edgemem, growing cache"


class Moment(Enum):
    """When sections take readings; see :meth:`Run.reading`."""

    BEFORE_OPENING = auto()
    OPENED = auto()
    """The stream has made its first step."""
    STEPPED = auto()
    """Right after the last step of the main loop."""
    END = auto()


class Run:
    """A bundle that is open for measuring.

    Args:
        path: The bundle.
        options: What is measured.
        plan: How much of it.
        progress: Called between timed sections.
        stack: Closes the session, and whatever a section opens for longer than its own measurement.

    Attributes:
        session: The open bundle.
        loop: The main loop, after its first step.
        options: As given.
        plan: As given, limited to what the model takes.
        progress: As given.
        stack: As given.
        readings: What the sections read at each moment, by the section's key.
        opening_ms: Time of ``edgemem.open``, of ``session.stream()``, and of the first step.

    Raises:
        EdgememError: The bundle cannot be opened, or its outputs are not finite.
    """

    def __init__(
        self, path: str | Path, options: Options, plan: Plan, progress: Progress, stack: contextlib.ExitStack
    ) -> None:
        progress("opening", 0, 1)
        began = time.perf_counter_ns()
        session = edgemem.open(path, runtime=options.runtime, threads=options.threads, device=options.device)
        opened = time.perf_counter_ns()
        self.session: Session = stack.enter_context(session)
        stream = new_stream(session)
        made = time.perf_counter_ns()
        self.loop = Loop(stream, session.contract)
        first = time_steps(self.loop.step, np.zeros(1, dtype=np.int64), self.loop.choose)
        self.loop.check()
        self.opening_ms = (opened - began) / 1e6, (made - opened) / 1e6, float(first[0]) / 1e6
        self.options, self.plan, self.progress, self.stack = options, plan.within(session.contract), progress, stack
        self.readings: dict[Moment, dict[str, Any]] = {}
        self._made: dict[Callable[[Run], Any], Any] = {}
        progress("opening", 1, 1)

    @cached_property
    def devices(self) -> Devices:
        """The sensors of this machine."""
        return devices_of(self.session, self.loop.stream)

    def reading(self, key: str, moment: Moment) -> Any:
        """What a section read at a moment.

        Args:
            key: The section's.
            moment: When.
        """
        return self.readings[moment][key]

    def once(self, make: Callable[[Run], T]) -> T:
        """What ``make`` returns for this run; it is called once, however many sections need it."""
        if make not in self._made:
            self._made[make] = make(self)
        made: T = self._made[make]
        return made


def is_decoder(bundle: Bundle) -> bool:
    """Whether the bundle has a decoder's configuration, from which other decoders of its shape can be built."""
    return bundle.manifest.model is not None


def has_lookup(bundle: Bundle) -> bool:
    """Whether a decoder's token embedding is only looked up: the output layer does not share it."""
    model = bundle.manifest.model
    return model is not None and not model.tie_embeddings
