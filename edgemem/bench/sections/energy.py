"""Energy of a step, from the sensors of the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgemem.bench import measure, pictures
from edgemem.bench.devices.energy import RailEnergy, Sampler
from edgemem.bench.result import BenchResult, NotMeasured, Section, Stage
from edgemem.bench.subject import Run
from edgemem.bench.table import Card, Picture, Table
from edgemem.bench.words import NOT_MEASURED, count, joules, number, watts

_SPOTS = 40
"""Values of a plot that the page shows on hover, or a few more."""


@dataclass(frozen=True)
class Energy(Section, key="energy", title="Energy", place=90, stage=Stage.SAME_LOOP, gives_reason=True):
    """Energy of the whole loop. It includes the choice of the next input, and what an idle device draws.

    Attributes:
        steps: Steps of the run.
        seconds: Length of the run.
        rails: By sensor. They cannot be added up: some feed others.
    """

    steps: int
    seconds: float
    rails: list[RailEnergy]

    @classmethod
    def measure(cls, run: Run) -> Energy | NotMeasured:
        devices = run.devices
        if not devices.sensors:
            return NotMeasured(devices.no_power)
        run.progress("energy", 0, 1)
        with Sampler(devices.sensors) as sampler:
            steps = measure.run_for(run.loop, run.plan.energy_seconds)
        run.loop.check()
        run.progress("energy", 1, 1)
        return cls(steps, sampler.seconds, sampler.rails(steps))

    def tables(self, result: BenchResult) -> list[Table]:
        notes = [
            f"{count(self.steps)} steps in {number(self.seconds)} s. The energy includes the choice of the next input "
            "and what the device draws when idle. The error covers resolution, averaging and sampling, but not the "
            "calibration of the sensor. Rails cannot be added up: some feed others.",
            *(f"{rail.name}: not measured: {rail.skipped}." for rail in self.rails if rail.skipped is not None),
        ]
        columns = ("sensor", "a step", "error", "mean power", "readings", "covers")
        rows = [_row(rail) for rail in self.rails]
        plots = [Picture("Power of each sensor during the run", self._draw, 2.8)] if self._traced() else []
        return [Table(self.key, self.title, columns, rows, columns[1:4], notes, plots)]

    def cards(self, result: BenchResult) -> list[Card]:
        total = next((rail for rail in self.rails if rail.is_total and rail.joules_per_step is not None), None)
        if total is None:
            return []
        return [Card("energy of a step", joules(total.joules_per_step), f"{total.name}, {total.covers}")]

    def method(self, result: BenchResult) -> dict[str, str]:
        return {
            "Energy": "A separate run, in which a second thread reads the sensors. Power is integrated by the "
            "trapezoid rule; an energy counter is read at both ends. At least ten independent readings are needed. "
            "The error adds up half a count of the sensor, what lies between the readings, and what a sensor that "
            "averages smears over the ends."
        }

    def _traced(self) -> list[RailEnergy]:
        return [rail for rail in self.rails if len(rail.watts) > 1]

    def _draw(self, figure: Any) -> None:
        axes = figure.add_subplot()
        traced = self._traced()
        has_total = any(rail.is_total for rail in traced)
        for rail in traced:
            color = pictures.OURS if rail.is_total or not has_total else pictures.OTHER
            axes.plot(rail.times_s, rail.watts, color=color, linewidth=1.2)
            some = slice(None, None, max(1, len(rail.watts) // _SPOTS))
            x, y = rail.times_s[some], rail.watts[some]
            pictures.spots(axes, x, y, [f"{rail.name}, {number(s)} s: {watts(w)}" for s, w in zip(x, y, strict=True)])
            pictures.label(axes, rail.times_s[-1], rail.watts[-1], rail.name, color)
        axes.set_xlim(0, self.seconds)
        axes.set_ylim(0, max(max(rail.watts) for rail in traced) * 1.3)
        axes.set_xlabel("seconds")
        axes.set_ylabel("power, W")


def _row(rail: RailEnergy) -> tuple[str, ...]:
    return (
        rail.name,
        joules(rail.joules_per_step),
        NOT_MEASURED if rail.error_joules is None else f"± {joules(rail.error_joules)}",
        watts(rail.mean_w),
        f"{count(rail.samples)}" + ("" if rail.rate_hz is None else f" at {number(rail.rate_hz)} Hz"),
        rail.covers,
    )
