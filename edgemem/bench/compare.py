"""Two results side by side: figures over the floor of their own run, so that a faster machine is no faster model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgemem.bench.result import BenchResult
from edgemem.bench.sections.comparison import Comparison
from edgemem.bench.sections.environment import Environment
from edgemem.bench.sections.memory import Memory
from edgemem.bench.sections.prefill import Prefill
from edgemem.bench.sections.rates import Rates
from edgemem.bench.sections.steps import Steps
from edgemem.bench.statistics import Interval
from edgemem.bench.table import Table
from edgemem.bench.words import memory, ms, number
from edgemem.wording import counted

MARGIN = 1.10
"""Two runs of one build differ by some per cent even over their floors. Only what lies beyond counts as a change."""


@dataclass(frozen=True)
class Figure:
    """One figure of a result.

    Attributes:
        name: What it is.
        value: Over the floor of its run, or in ``unit``.
        low: Lower bound of its interval; the value itself if there is none.
        high: Upper bound.
        unit: ``"floor"``, ``"ms"`` or ``"bytes"``.
        decides: Whether a change of it is a verdict: it was measured in turns with the floor and has an interval, or it
            is no measured time.
    """

    name: str
    value: float
    low: float
    high: float
    unit: str
    decides: bool = False

    @property
    def text(self) -> str:
        """The value for people."""
        if self.unit == "bytes":
            return memory(round(self.value))
        return ms(self.value) if self.unit == "ms" else f"{number(self.value)} × floor"


@dataclass(frozen=True)
class Change:
    """A figure in both results; ``ratio`` is new over old."""

    old: Figure
    new: Figure

    @property
    def ratio(self) -> float:
        """New over old; below 1, the new one is better."""
        return self.new.value / self.old.value if self.old.value else 1.0

    @property
    def verdict(self) -> str:
        """``"worse"``, ``"better"``, or ``""`` where intervals and margin leave that open, or it decides nothing."""
        if not self.new.decides:
            return ""
        if self.new.low > self.old.high * MARGIN:
            return "worse"
        return "better" if self.new.high * MARGIN < self.old.low else ""


@dataclass(frozen=True)
class ResultChange:
    """What changed from one result to another.

    Attributes:
        changes: The figures that both have.
        warnings: Why the two may not be comparable.
    """

    changes: list[Change]
    warnings: list[str]

    @property
    def slower(self) -> bool:
        """Whether a figure that decides got worse."""
        return any(change.verdict == "worse" for change in self.changes)

    def table(self) -> Table:
        """The figures of both."""
        rows: list[tuple[str, ...]] = [
            (change.new.name, change.old.text, change.new.text, f"{number(change.ratio)}×", change.verdict)
            for change in self.changes
        ]
        note = (
            f"Worse or better: more than {MARGIN - 1:.0%} lie between the intervals. Rates, prefill and peak memory "
            "get no verdict: they were not measured in turns with the floor."
        )
        columns = ("figure", "old", "new", "new / old", "")
        return Table("change", "Compared with the old result", columns, rows, columns[1:4], [note])


def compare_results(old: BenchResult, new: BenchResult) -> ResultChange:
    """Compare two results.

    Args:
        old: The one to compare with.
        new: The one that is judged.
    """
    before = {figure.name: figure for figure in figures(old)}
    changes = [
        Change(before[figure.name], figure)
        for figure in figures(new)
        if figure.name in before and before[figure.name].unit == figure.unit
    ]
    return ResultChange(changes, [*_warnings(old, new)])


def figures(result: BenchResult) -> Iterator[Figure]:
    """The figures of a result that can be compared: times over the floor if it was measured, and bytes."""
    comparison = result.get(Comparison)
    floor = comparison.floor if comparison else None

    def time(name: str, value_ms: float) -> Figure:
        value = value_ms / floor.p50_ms if floor else value_ms
        return Figure(name, value, value, value, "floor" if floor else "ms")

    if floor is not None:
        yield _of_interval("step", floor.step_over_floor, "floor")
    elif steps := result.get(Steps):
        yield time("step", steps.latency.percentile_ms(50.0) or steps.latency.mean_ms)
    if rates := result.get(Rates):
        for rate in rates.rows:
            threads = "" if rate.threads is None else f", {counted(rate.threads, 'thread')}"
            yield time(f"{rate.test}{threads}", rate.step_ms)
    if prefill := result.get(Prefill):
        yield time("a step of the prefill", prefill.p50_ms / prefill.length)
    if used := result.get(Memory):
        for name, value in (("state of one stream", used.state_bytes), ("weights file", used.weights_bytes)):
            yield Figure(name, value, value, value, "bytes", decides=True)
        yield Figure("peak memory", used.peak_bytes, used.peak_bytes, used.peak_bytes, "bytes")


def _of_interval(name: str, found: Interval, unit: str) -> Figure:
    has_bounds = found.low is not None and found.high is not None
    low, high = (found.low or found.value, found.high or found.value)
    return Figure(name, found.value, low, high, unit, decides=has_bounds)


def _warnings(old: BenchResult, new: BenchResult) -> Iterator[str]:
    machines = old.get(Environment), new.get(Environment)
    for which, result, machine in (("old", old, machines[0]), ("new", new, machines[1])):
        if machine is not None and machine.loaded:
            busy = number(machine.others_cores or 0, 2)
            yield f"The machine of the {which} run was loaded: other programs kept {busy} cores busy."
        if result.quick:
            yield f"The {which} run was quick: its figures are rough."
    if machines[0] is not None and machines[1] is not None:
        for name in ("cpu", "board", "cores", "governor", "threads", "pinned"):
            before, after = (getattr(machine, name) for machine in machines)
            if before != after:
                yield f"The runs differ in {name}: {before or 'none'} then, {after or 'none'} now."
    for name in ("runtime", "device", "form", "fingerprint"):
        before, after = getattr(old.subject, name), getattr(new.subject, name)
        if before != after:
            what = "bundle" if name == "fingerprint" else name
            yield f"The runs differ in the {what}: {str(before)[:16] or 'none'} then, {str(after)[:16] or 'none'} now."
