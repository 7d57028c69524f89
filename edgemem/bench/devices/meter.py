"""Joules of a process that runs for months: sums by sensor, and no reading kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from edgemem.bench.devices.reader import PowerSensor


class Meter:
    """Adds up the energy of sensors, reading by reading.

    Args:
        sensors: What to read.
        clock: Seconds.
    """

    def __init__(self, sensors: Sequence[PowerSensor], clock: Callable[[], float] = time.monotonic) -> None:
        self.sensors, self._clock = sensors, clock
        self._last: dict[int, tuple[float, float]] = {}

    def rises(self) -> Iterator[tuple[PowerSensor, float]]:
        """Read every sensor: its joules since its last reading, by the trapezoid rule or by its own counter.

        A sensor that cannot be read is left out this time; so is a counter that went back.
        """
        for place, sensor in enumerate(self.sensors):
            now_s, value = self._clock(), sensor.read()
            if value is None:
                continue
            if place in self._last:
                then_s, before = self._last[place]
                is_counter = sensor.quantity == "joules"
                joules = value - before if is_counter else (now_s - then_s) * (value + before) / 2
                if joules >= 0:
                    yield sensor, joules
            self._last[place] = now_s, value
