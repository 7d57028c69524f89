"""Time from the bundle on disk to the first output."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.subject import Run
from edgemem.bench.table import Table, rows_of, shown
from edgemem.bench.words import ms


@dataclass(frozen=True)
class Opening(Section, key="opening", title="Time to the first output", place=110, stage=Stage.READINGS):
    """From the bundle on disk to the first output.

    Attributes:
        open_ms: ``edgemem.open``: hashes every file, imports the engine, loads the graph.
        stream_ms: ``session.stream()``.
        first_step_ms: The first step, before any warm-up.
    """

    open_ms: float = shown("open", ms, "checks hashes, imports the engine, loads the graph")
    stream_ms: float = shown("stream", ms, "allocates buffers")
    first_step_ms: float = shown("first step", ms, "without warm-up")

    @classmethod
    def measure(cls, run: Run) -> Opening:
        return cls(*run.opening_ms)

    def tables(self, result: BenchResult) -> list[Table]:
        return [Table(self.key, self.title, ("what", "time", ""), rows_of(self), ("time",))]
