"""Clocks, temperatures and throttling of the device during the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgemem.bench.devices.found import throttled
from edgemem.bench.devices.reader import DeviceState, Reading
from edgemem.bench.result import BenchResult, Section, Stage
from edgemem.bench.subject import Moment, Run
from edgemem.bench.table import Table
from edgemem.bench.words import NOT_MEASURED, count, number

_PROBLEMS_SHOWN = 3


@dataclass(frozen=True)
class Conditions(Section, key="conditions", title="Clocks, temperatures, power mode", place=120, stage=Stage.READINGS):
    """The device before, during and after the benchmark.

    Attributes:
        before: After the bundle was opened and made its first step.
        loaded: Right after the last step of the main loop.
        after: At the end.
        throttled: What held the clocks down meanwhile; empty: nothing that the device reports.
        problems: What exists and could not be read.
    """

    before: DeviceState
    loaded: DeviceState
    after: DeviceState
    throttled: list[str]
    problems: list[str]

    @classmethod
    def read(cls, run: Run | None) -> DeviceState | None:
        return None if run is None else run.devices.state()

    @classmethod
    def measure(cls, run: Run) -> Conditions:
        before, loaded, after = (run.reading(cls.key, moment) for moment in (Moment.OPENED, Moment.STEPPED, Moment.END))
        return cls(before, loaded, after, throttled(before, loaded, after), run.devices.problems)

    def tables(self, result: BenchResult) -> list[Table]:
        if self.loaded == DeviceState():
            return []
        states = (self.before, self.loaded, self.after)
        rows = [
            *_rows("clock", "MHz", states, lambda state: state.clocks_mhz),
            *_rows("temperature", "°C", states, lambda state: state.temperatures_c),
        ]
        if any(state.power_mode for state in states):
            rows.append(("power mode", *(state.power_mode or NOT_MEASURED for state in states)))
        columns = ("what", "before the steps", "after the steps", "at the end")
        return [Table(self.key, self.title, columns, rows, notes=self._notes(states))]

    def _notes(self, states: Sequence[DeviceState]) -> list[str]:
        notes = []
        if self.loaded.governors:
            notes.append(f"Governors: {', '.join(self.loaded.governors)}.")
        if self.throttled:
            notes.append(f"Throttled: {'; '.join(self.throttled)}.")
        elif any(state.throttling or state.throttle_events for state in states):
            notes.append("Not throttled, as far as this device reports.")
        if self.problems:
            more = len(self.problems) - _PROBLEMS_SHOWN
            listed = "; ".join(self.problems[:_PROBLEMS_SHOWN])
            notes.append(f"Not readable: {listed}{f'; and {count(more)} more' if more > 0 else ''}.")
        return notes


def _rows(
    what: str, unit: str, states: Sequence[DeviceState], readings_of: Callable[[DeviceState], list[Reading]]
) -> list[tuple[str, ...]]:
    readings = [readings_of(state) for state in states]
    names = dict.fromkeys(_shown_as(reading.name) for some in readings for reading in some)
    return [(f"{what}, {name}", *(_figure(some, name, unit) for some in readings)) for name in names]


def _shown_as(name: str) -> str:
    """A reading's name in the table: the clocks of all cores share a row."""
    return "CPU" if name.startswith("cpu policy") else name


def _figure(readings: list[Reading], name: str, unit: str) -> str:
    values = [reading.value for reading in readings if _shown_as(reading.name) == name]
    if not values:
        return NOT_MEASURED
    lowest, highest = number(min(values)), number(max(values))
    return f"{lowest} {unit}" if lowest == highest else f"{lowest} to {highest} {unit}"
