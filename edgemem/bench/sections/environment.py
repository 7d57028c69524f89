"""Where it was measured: the machine, the versions, and how busy the machine was."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.subject import Moment, Run
from edgemem.bench.table import Table
from edgemem.bench.words import count, number
from edgemem.console import readable_bytes
from edgemem.machine.facts import Facts, facts, load_average
from edgemem.machine.load import CpuTime
from edgemem.wording import counted

_LOADED_FROM_CORES = 0.2


@dataclass(frozen=True)
class Environment(Section, Facts, key="environment", title="Environment", place=1_000, stage=Stage.READINGS):
    """Where it was measured: the facts about the machine, and what was true of this run alone.

    Attributes:
        date: When the run ended.
        load_average: Before the run.
        load_average_after: At its end.
        threads: Threads of the engine; ``None``: it chose.
        others_cores: How many cores other programs kept busy during the run; ``None``: not known.
        loaded: Whether that is enough to make the figures doubtful.
        pinned: The cores that the process was pinned to; empty: it was not.
        command: The command line.
    """

    date: str
    load_average: list[float]
    load_average_after: list[float]
    threads: int | None
    others_cores: float | None = None
    loaded: bool = False
    pinned: list[int] = field(default_factory=list)
    command: str = ""

    @classmethod
    def read(cls, run: Run | None) -> tuple[list[float], CpuTime | None]:
        return load_average(), CpuTime.now()

    @classmethod
    def measure(cls, run: Run) -> Environment:
        (before, began), (after, ended) = (
            run.reading(cls.key, moment) for moment in (Moment.BEFORE_OPENING, Moment.END)
        )
        others = ended.others_since(began) if began and ended else None
        options = run.options
        return replace(
            cls.of(options.threads, before, after),
            others_cores=others,
            loaded=others is not None and others > _LOADED_FROM_CORES,
            pinned=list(options.pinned),
            command=options.command,
        )

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

    def warning(self, result: BenchResult) -> str:
        if not self.loaded or self.others_cores is None:
            return ""
        return (
            f"This machine was loaded: other programs kept {number(self.others_cores, 2)} of "
            f"{counted(self.cores, 'core')} busy. Times are too long and vary. Measure again on a quiet machine."
        )

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
            **({} if self.others_cores is None else {"other programs": f"{number(self.others_cores, 2)} cores busy"}),
            **({"pinned to": f"core {', '.join(map(count, self.pinned))}"} if self.pinned else {}),
            **({"command": self.command} if self.command else {}),
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
