"""Memory of the bundle and of the process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import edgemem
from edgemem.bench import measure, words
from edgemem.bench.devices.memory import proportional_bytes
from edgemem.bench.loop import Loop, new_stream
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.subject import Moment, Run
from edgemem.bench.table import Card, Table, rows_of, shown
from edgemem.console import readable_bytes
from edgemem.machine import memory as machine_memory

_BLOCK = 1_000


class _Reading(NamedTuple):
    resident: int
    peak: int
    available: int | None
    proportional: int | None
    gpu: int | None


@dataclass(frozen=True)
class Memory(Section, key="memory", title="Memory breakdown", place=100, stage=Stage.READINGS):
    """Bytes. Resident and peak memory are of the whole process, before any baseline is loaded.

    Attributes:
        weights_bytes: The weights file.
        graphs_bytes: The ONNX files.
        state_bytes: The state of one stream.
        resident_before_open_bytes: Only Python, numpy and this program.
        resident_opened_bytes: After opening and the first step.
        resident_measured_bytes: After the measured steps.
        peak_bytes: The most that was ever resident until then.
        proportional_bytes: After the measured steps, with a share of the pages that other processes use too (PSS).
        gpu_bytes: Memory of a discrete GPU that this process holds; ``None``: no such GPU, or not reported.
        is_integrated: The GPU uses the memory of the process and the system.
        available_fall_bytes: How much less memory was available after the steps than before opening.
    """

    weights_bytes: int = shown("weights file", words.memory)
    graphs_bytes: int = shown("graphs", words.memory)
    state_bytes: int = shown("state of one stream", words.memory)
    resident_before_open_bytes: int = shown("resident before opening", words.memory, "Python and this program")
    resident_opened_bytes: int = shown("resident once opened", words.memory, "after the first step")
    resident_measured_bytes: int = shown("resident after the steps", words.memory)
    peak_bytes: int = shown("peak resident", words.memory, "the most until then, including loading")
    proportional_bytes: int | None = shown(
        "proportional after the steps", words.memory, "shared pages count in part (PSS)", default=None
    )
    gpu_bytes: int | None = shown("on the GPU", words.memory, "of this process, as its driver reports", default=None)
    is_integrated: bool = False
    available_fall_bytes: int | None = None

    @classmethod
    def read(cls, run: Run | None) -> _Reading:
        return _Reading(
            machine_memory.resident_bytes(),
            machine_memory.peak_bytes(),
            machine_memory.available_bytes(),
            proportional_bytes(),
            run.devices.gpu.process_bytes() if run is not None and run.devices.gpu is not None else None,
        )

    @classmethod
    def measure(cls, run: Run) -> Memory:
        bundle = run.session.bundle
        before, opened, stepped = (
            run.reading(cls.key, moment) for moment in (Moment.BEFORE_OPENING, Moment.OPENED, Moment.STEPPED)
        )
        has_fall = before.available is not None and stepped.available is not None
        return cls(
            weights_bytes=bundle.weights_bytes,
            graphs_bytes=sum(bundle.manifest.files[graph.file][1] for graph in bundle.manifest.graphs),
            state_bytes=run.session.contract.state_bytes,
            resident_before_open_bytes=before.resident,
            resident_opened_bytes=opened.resident,
            resident_measured_bytes=stepped.resident,
            peak_bytes=stepped.peak,
            proportional_bytes=stepped.proportional,
            gpu_bytes=stepped.gpu,
            is_integrated=run.devices.is_integrated,
            available_fall_bytes=before.available - stepped.available if has_fall else None,
        )

    def tables(self, result: BenchResult) -> list[Table]:
        rows = rows_of(self)
        notes = ["Of the whole process, before anything else was loaded for the comparison."]
        if self.is_integrated:
            notes.append(
                "The GPU uses the memory of the system. What its driver holds without mapping it into the process "
                "shows only in the memory taken from the system, which includes what other programs took meanwhile."
            )
            if self.available_fall_bytes is not None:
                fall = readable_bytes(max(0, self.available_fall_bytes))
                rows.append(("taken from the system", fall, "fall of available memory since before opening"))
        return [Table(self.key, self.title, ("what", "bytes", ""), rows, ("bytes",), notes)]

    def cards(self, result: BenchResult) -> list[Card]:
        where = "at every position" if result.subject.has_fixed_size else "at position 0, and growing"
        return [
            Card("state of one stream", readable_bytes(self.state_bytes), where),
            Card("peak memory", readable_bytes(self.peak_bytes), "of the whole process"),
        ]

    def method(self, result: BenchResult) -> dict[str, str]:
        return {
            "Memory": "The bytes of a state follow from the contract. Resident memory is the operating system's figure "
            "for the process, including Python, before any baseline is loaded. If the system reads files through "
            "memory maps, resident memory includes the weights."
        }


def resident_growth(path: str | Path, steps: int, threads: int | None = None) -> tuple[int, int]:
    """Make steps, and see whether the process grows. Call it in a new process.

    In a process that has freed much memory before, a leak could go unnoticed.

    Args:
        path: The bundle.
        steps: Steps after the warm-up, rounded up to whole thousands.
        threads: As in :func:`edgemem.open`.

    Returns:
        Resident bytes after the warm-up, and their growth until the end.
    """
    with edgemem.open(path, threads=threads) as session:
        loop = Loop(new_stream(session), session.contract)
        for _ in range(5):
            measure.run_loop(loop, _BLOCK)
        before = machine_memory.resident_bytes()
        for _ in range(-(-steps // _BLOCK)):
            measure.run_loop(loop, _BLOCK)
        return before, machine_memory.resident_bytes() - before
