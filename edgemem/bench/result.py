"""The result of a benchmark: its sections, each of which measures and shows itself.

A section is a frozen dataclass below :class:`Section`, in its own file in :mod:`edgemem.bench.sections`. The
benchmark, the terminal, the JSON and the page loop over the sections, so a new section appears in all four.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import IntEnum
from typing import Any, ClassVar, TypeVar

from edgemem.bench.subject import Run, Subject
from edgemem.bench.table import Card, Table

FORMAT = "edgemem.bench"
VERSION = 1
S = TypeVar("S", bound="Section")


class Stage(IntEnum):
    """When a section is measured. Within a stage, sections are measured in the order in which they are shown."""

    STEPS = 0
    """The main loop, on a machine that has done nothing else."""
    SAME_LOOP = 1
    """More steps of the same loop, right after it."""
    ALONE = 2
    """Other loops, while nothing else is loaded."""
    ROUNDS = 3
    """In turns with everything that the bundle is compared with."""
    OTHER_SESSION = 4
    """In a session that is opened for this section."""
    READINGS = 5
    """Runs nothing: the section only reports readings."""


@dataclass(frozen=True)
class NotMeasured:
    """Why a section was not measured, as the end of the sentence "Not measured: …"."""

    reason: str


@dataclass(frozen=True)
class Section(ABC):
    """One section of the result. The fields of a subclass are its JSON; units are in their names.

    Args:
        key: Its name in the JSON.
        title: Its heading.
        place: Where it is shown: sections are sorted by this number.
        stage: When it is measured.
        gives_reason: Whether the JSON has ``<key>_skipped``, the reason why it was not measured.
        on_request: Whether an option asks for it: then the terminal prints it without ``--full`` too.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    place: ClassVar[int]
    stage: ClassVar[Stage]
    gives_reason: ClassVar[bool] = False
    on_request: ClassVar[bool] = False

    def __init_subclass__(cls, **about: Any) -> None:
        for name, value in about.items():
            setattr(cls, name, value)

    @classmethod
    def read(cls, run: Run | None) -> Any:
        """Take a reading, for :meth:`Run.reading`; called at every :class:`~edgemem.bench.subject.Moment`.

        Args:
            run: ``None`` before the bundle is opened.
        """
        return None

    @classmethod
    @abstractmethod
    def measure(cls, run: Run) -> Section | NotMeasured | None:
        """Measure the section; ``None``: it was not asked for, and nothing is shown."""

    @abstractmethod
    def tables(self, result: BenchResult) -> list[Table]:
        """What the terminal and the page show."""

    def headline(self, result: BenchResult) -> str:
        """What the section adds to the sentence at the top; usually nothing."""
        return ""

    def warning(self, result: BenchResult) -> str:
        """What makes the figures of this run doubtful, in a sentence; usually nothing."""
        return ""

    def cards(self, result: BenchResult) -> list[Card]:
        """The figures that the section puts at the top of the page; usually none."""
        return []

    def method(self, result: BenchResult) -> dict[str, str]:
        """How it was measured, for the end of the page: term → explanation, with ``code`` in backticks."""
        return {}


@dataclass(frozen=True)
class BenchResult:
    """One complete run of the benchmark.

    Attributes:
        subject: What was measured.
        outcomes: Every section that the benchmark knows, in the order in which they are shown; ``None``: not asked for.
        quick: Whether it was a quick run, whose figures are rough.
        duration_s: How long the benchmark took.
    """

    subject: Subject
    outcomes: Mapping[type[Section], Section | NotMeasured | None]
    quick: bool
    duration_s: float
    format: str = FORMAT
    version: int = VERSION

    def __repr__(self) -> str:
        return f"BenchResult({self.subject.name}: {self.headline()})"

    def get(self, kind: type[S]) -> S | None:
        """A section; ``None`` if it was not measured."""
        found = self.outcomes.get(kind)
        return found if isinstance(found, kind) else None

    def __getitem__(self, kind: type[S]) -> S:
        """A section.

        Raises:
            KeyError: It was not measured.
        """
        found = self.get(kind)
        if found is None:
            raise KeyError(kind.key)
        return found

    def skipped(self, kind: type[Section]) -> str | None:
        """Why a section was not measured; ``None`` if it was, or was not asked for."""
        found = self.outcomes.get(kind)
        return found.reason if isinstance(found, NotMeasured) else None

    @property
    def measured(self) -> list[Section]:
        """The sections that were measured, in the order in which they are shown."""
        return [found for found in self.outcomes.values() if isinstance(found, Section)]

    def tables(self) -> list[Table]:
        """The tables of all sections, in the order in which they are shown."""
        tables: list[Table] = []
        for kind, found in self.outcomes.items():
            if isinstance(found, Section):
                tables += [replace(table, brief=table.brief or kind.on_request) for table in found.tables(self)]
            elif isinstance(found, NotMeasured):
                notes = [f"Not measured: {found.reason}."]
                tables.append(Table(kind.key, kind.title, notes=notes, brief=kind.on_request))
        return tables

    def headline(self) -> str:
        """The result in a few sentences."""
        return " ".join(filter(None, (section.headline(self) for section in self.measured)))

    @property
    def warnings(self) -> list[str]:
        """What makes the figures of this run doubtful; shown above all figures."""
        return [*filter(None, (section.warning(self) for section in self.measured))]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        sections: dict[str, Any] = {}
        for kind, found in self.outcomes.items():
            sections[kind.key] = asdict(found) if isinstance(found, Section) else None
            if kind.gives_reason:
                sections[f"{kind.key}_skipped"] = self.skipped(kind)
        return {
            "subject": asdict(self.subject),
            **sections,
            "quick": self.quick,
            "duration_s": self.duration_s,
            "format": self.format,
            "version": self.version,
        }
