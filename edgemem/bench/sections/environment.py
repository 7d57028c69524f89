"""Where it was measured: the machine, the versions, and how busy the machine was."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.subject import Moment, Run
from edgemem.bench.table import Table
from edgemem.bench.words import count, number
from edgemem.console import readable_bytes
from edgemem.machine.facts import Facts, facts, load_average


@dataclass(frozen=True)
class Environment(Section, Facts, key="environment", title="Environment", place=1_000, stage=Stage.READINGS):
    """Where it was measured: the facts about the machine, and what was true of this run alone."""

    date: str
    load_average: list[float]
    load_average_after: list[float]
    threads: int | None

    @classmethod
    def read(cls, run: Run | None) -> list[float]:
        return load_average()

    @classmethod
    def measure(cls, run: Run) -> Environment:
        before, after = (run.reading(cls.key, moment) for moment in (Moment.BEFORE_OPENING, Moment.END))
        return cls.of(run.options.threads, before, after)

    @classmethod
    def of(cls, threads: int | None, load_before: list[float], load_after: list[float]) -> Environment:
        """The environment at the end of a run.

        Args:
            threads: Threads the engine was given; ``None``: the engine chose.
            load_before: The load average at the start of the run.
            load_after: The load average now.
        """
        return cls(
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            load_average=load_before,
            load_average_after=load_after,
            threads=threads,
            **vars(facts()),
        )

    @property
    def device(self) -> str:
        """The best name that this machine has."""
        return self.board or self.cpu or self.machine

    def tables(self, result: BenchResult) -> list[Table]:
        subject = result.subject
        before, after = (
            ", ".join(number(load, 2) for load in loads) for loads in (self.load_average, self.load_average_after)
        )
        rows = {
            "bundle": f"{subject.path}, {subject.fingerprint[:16]}",
            "source": ", ".join(f"{key} {value}" for key, value in subject.source.items()) or "unknown",
            "runtime": f"{subject.runtime} on {subject.device}",
            **({"computed with": subject.form} if subject.form else {}),
            "threads": count(self.threads) if self.threads else "chosen by the engine",
            "board": self.board or "unknown",
            "processor": f"{self.cpu or 'unknown'}, {self.machine}",
            "cores": f"{self.cores}, {self.usable_cores} usable",
            "clock governor": self.governor or "not readable",
            "memory": readable_bytes(self.memory_bytes) if self.memory_bytes else "not readable",
            "load average": f"{before} before, {after} after",
            "system": self.os,
            "Python": self.python,
            "packages": ", ".join(f"{name} {version}" for name, version in self.packages.items()),
            "date": self.date,
        }
        return [Table(self.key, self.title, ("what", "value"), list(rows.items()))]

    def method(self, result: BenchResult) -> dict[str, str]:
        no_gpu = "Nothing was run on a GPU. " if result.subject.device == "cpu" else ""
        return {
            "What it does not tell": f"{no_gpu}Other programs, clocks and temperature affect every figure: compare "
            "figures of one run rather than of two. Nothing here tells how well the model predicts."
        }
