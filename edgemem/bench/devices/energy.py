"""Joules of a run: a thread reads the sensors, and the readings are integrated by the trapezoid rule.

The error bounds only what the readings leave open. The calibration of a sensor and of its shunt (some per cent) is not
included.

* Power, ``n`` independent readings of spread ``s`` over ``T`` seconds: ``2 s / √n · T`` for what lies between the
  readings; half a count of the sensor for ``T`` seconds; and, if a reading is an average over ``w`` seconds, ``w``
  times the range of the readings, since what begins or ends inside a window is smeared over it.
* A counter of energy: the largest rise between two readings, by which either end may lag.

Readings are independent if they lie at least a window apart. Energy needs at least :data:`FEWEST`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from edgemem.bench.devices.reader import PowerSensor

FEWEST = 10
"""Least number of independent readings for joules, as a percentile needs ten samples beyond it."""

INTERVAL_S = 0.05
_TRACE = 200
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RailEnergy:
    """Energy of one sensor over a run of steps.

    Attributes:
        name: Name of the sensor.
        covers: What its power covers.
        is_total: Whether it covers the whole device.
        joules_per_step: ``None`` if the readings are too few; ``skipped`` is the reason.
        error_joules: Bound of the error by resolution, averaging and sampling, but not by the sensor's calibration.
        mean_w: Over the run.
        samples: Readings taken.
        independent: How many of them are independent.
        rate_hz: Readings per second.
        skipped: Why there are no joules.
        times_s: Of the trace, from the start of the run.
        watts: The trace: power at these times.
    """

    name: str
    covers: str
    is_total: bool
    joules_per_step: float | None
    error_joules: float | None
    mean_w: float | None
    samples: int
    independent: int
    rate_hz: float | None
    skipped: str | None = None
    times_s: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)


class Sampler:
    """Reads sensors during its block, and once at each end.

    Args:
        sensors: What to read.
        interval_s: Seconds between two readings.
        clock: Seconds.
    """

    def __init__(
        self,
        sensors: Sequence[PowerSensor],
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._sensors = sensors
        self._interval_s = interval_s
        self._clock = clock
        self._stop = threading.Event()
        self._readings: list[list[tuple[float, float]]] = [[] for _ in sensors]
        self._thread = threading.Thread(target=self._run, name="edgemem-power", daemon=True)
        self._start = self._end = 0.0

    def __enter__(self) -> Sampler:
        self._read()
        self._start = self._clock()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end = self._clock()
        self._stop.set()
        self._thread.join()
        self._read()

    @property
    def seconds(self) -> float:
        """Length of the block."""
        return self._end - self._start

    def rails(self, steps: int) -> list[RailEnergy]:
        """Energy by sensor.

        Args:
            steps: Steps made in the block.
        """
        found = []
        for sensor, readings in zip(self._sensors, self._readings, strict=True):
            columns = np.array(readings, dtype=np.float64).reshape(-1, 2)
            found.append(rail_energy(sensor, columns[:, 0], columns[:, 1], self._start, self._end, steps))
        return found

    def _run(self) -> None:
        due = self._clock()
        while True:
            due = max(due + self._interval_s, self._clock())
            if self._stop.wait(max(0.0, due - self._clock())):
                return
            self._read()

    def _read(self) -> None:
        for sensor, readings in zip(self._sensors, self._readings, strict=True):
            began = self._clock()
            value = sensor.read()
            if value is not None:
                readings.append(((began + self._clock()) / 2, value))


def rail_energy(sensor: PowerSensor, times: Floats, values: Floats, start: float, end: float, steps: int) -> RailEnergy:
    """Integrate the readings of one sensor over a run.

    Args:
        sensor: Whose readings.
        times: Seconds ``[N]``, rising.
        values: Watts or joules ``[N]``, by the quantity of the sensor.
        start: Of the run, in the same clock.
        end: Of the run.
        steps: Steps of the run.
    """
    seconds = end - start
    rate = float((times.size - 1) / (times[-1] - times[0])) if times.size > 1 and times[-1] > times[0] else None
    independent = independent_readings(sensor, times, values, seconds)

    def without(reason: str) -> RailEnergy:
        return RailEnergy(
            sensor.name, sensor.covers, sensor.is_total, None, None, None, times.size, independent, rate, reason
        )

    if times.size < 2:
        return without(f"{times.size} of its readings succeeded")
    if sensor.quantity == "joules" and (np.diff(values) < 0).any():
        return without("its energy counter went backwards")
    if independent < FEWEST:
        return without(f"{independent} independent readings in {seconds:.1f} s are too few; it needs {FEWEST}")
    if times[0] > start or times[-1] < end:
        longest = float(np.diff(times).max())
        if max(times[0] - start, end - times[-1]) > longest:
            return without("its readings do not span the run")
    joules, error = (_counted if sensor.quantity == "joules" else _integrated)(
        sensor, times, values, start, end, independent
    )
    trace_times, trace = _trace(sensor, times, values)
    return RailEnergy(
        name=sensor.name,
        covers=sensor.covers,
        is_total=sensor.is_total,
        joules_per_step=joules / steps,
        error_joules=error / steps,
        mean_w=joules / seconds,
        samples=times.size,
        independent=independent,
        rate_hz=rate,
        times_s=[round(float(t - start), 4) for t in trace_times],
        watts=[round(float(w), 4) for w in trace],
    )


def independent_readings(sensor: PowerSensor, times: Floats, values: Floats, seconds: float) -> int:
    """How many readings are independent: for a counter those at which it moved, for power one for each window."""
    if times.size < 2:
        return int(times.size)
    if sensor.quantity == "joules":
        return int((np.diff(values) > 0).sum())
    apart = max(sensor.window_s or 0.0, float(np.median(np.diff(times))))
    return int(min(times.size, seconds / apart + 1e-6))


def _integrated(
    sensor: PowerSensor, times: Floats, watts: Floats, start: float, end: float, independent: int
) -> tuple[float, float]:
    inside = (times > start) & (times < end)
    at = np.concatenate(([start], times[inside], [end]))
    power = np.interp(at, times, watts)
    seconds = end - start
    joules = float((np.diff(at) * (power[1:] + power[:-1]) / 2).sum())
    between = 2 * float(watts.std(ddof=1)) / np.sqrt(independent) * seconds
    smeared = (sensor.window_s or 0.0) * float(np.ptp(watts))
    return joules, float(between + sensor.resolution / 2 * seconds + smeared)


def _counted(
    sensor: PowerSensor, times: Floats, counter: Floats, start: float, end: float, independent: int
) -> tuple[float, float]:
    joules = float(np.interp(end, times, counter) - np.interp(start, times, counter))
    return joules, max(float(np.diff(counter).max()), sensor.resolution)


def _trace(sensor: PowerSensor, times: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Power against time, at most :data:`_TRACE` points, each the mean of the readings around it."""
    if sensor.quantity == "joules":
        moved = np.concatenate(([True], np.diff(values) > 0))  # nothing is known between two moves of the counter
        times, values = times[moved], values[moved]
        values = np.diff(values) / np.diff(times)
        times = (times[1:] + times[:-1]) / 2
    parts = min(_TRACE, times.size)
    return (
        np.array([part.mean() for part in np.array_split(times, parts)]),
        np.array([part.mean() for part in np.array_split(values, parts)]),
    )
