"""Joules since the start: sums by sensor, whatever the readings do."""

from __future__ import annotations

import pytest

from edgemem.bench.devices.meter import Meter
from tests.bench.devices.test_energy import Sensor


def test_power_is_added_up_by_the_trapezoid_rule_and_counters_by_their_rise() -> None:
    now_s = [0.0]
    power = Sensor(readings=[4.0, 6.0, None, 10.0])
    counter = Sensor(quantity="joules", name="package", readings=[100.0, 103.0, 2.0, 5.0])
    meter = Meter([power, counter], lambda: now_s[0])
    found = []
    for now_s[0] in (0, 2, 3, 6):
        found.append({sensor.name: joules for sensor, joules in meter.rises()})
    assert found == [
        {},
        {"VDD_IN": pytest.approx(10), "package": 3.0},
        {},  # one could not be read, the other went back
        {"VDD_IN": pytest.approx(4 * (6 + 10) / 2), "package": 3.0},
    ]
