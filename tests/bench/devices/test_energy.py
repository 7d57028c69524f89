"""Joules are the integral of the readings, their error is what those leave open, and too few readings carry none."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.bench.devices.energy import FEWEST, Sampler, independent_readings, rail_energy
from edgemem.bench.devices.reader import Quantity


@dataclass
class Sensor:
    """A sensor whose readings the test chooses; the readings of a run are given apart."""

    quantity: Quantity = "watts"
    window_s: float | None = None
    resolution: float = 0.0
    is_total: bool = True
    name: str = "VDD_IN"
    covers: str = "the whole module"
    readings: list[float | None] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)

    def read(self) -> float | None:
        self.threads.add(threading.get_ident())
        return self.readings.pop(0) if self.readings else 5.0


def spread(start: float, end: float, count: int) -> np.ndarray:
    """Times that begin a little before a run and end a little after it."""
    return np.linspace(start - 0.01, end + 0.01, count)


@given(power=st.floats(0.1, 500), seconds=st.floats(1, 100), steps=st.integers(1, 10_000), count=st.integers(20, 300))
def test_constant_power_gives_power_times_time(power: float, seconds: float, steps: int, count: int) -> None:
    times = spread(100.0, 100.0 + seconds, count)
    rail = rail_energy(Sensor(), times, np.full(count, power), 100.0, 100.0 + seconds, steps)
    assert rail.joules_per_step == pytest.approx(power * seconds / steps)
    assert rail.mean_w == pytest.approx(power)
    assert rail.error_joules == pytest.approx(0, abs=1e-9 * power * seconds)
    assert rail.samples == count
    assert rail.rate_hz == pytest.approx((count - 1) / (times[-1] - times[0]))


def test_power_that_rises_evenly_is_integrated_exactly_and_only_within_the_run() -> None:
    times = np.array([-3.0, -1.0, *np.linspace(0.5, 9.5, 40), 11.0, 14.0])
    rail = rail_energy(Sensor(), times, 2 + 3 * times, 0.0, 10.0, 5)
    assert rail.joules_per_step == pytest.approx((2 * 10 + 3 * 50) / 5)


@given(seed=st.integers(0, 2**32 - 1), noise=st.floats(0.1, 3), ripple=st.floats(0, 3))
def test_the_error_covers_noise_and_rounding_nearly_always(seed: int, noise: float, ripple: float) -> None:
    rng = np.random.default_rng(seed)
    times = np.sort(np.concatenate(([-0.001, 12.001], rng.uniform(0, 12, 240))))
    true = 10 + ripple * np.sin(2 * math.pi * times / 3)  # whole periods: 10 W on average
    watts = np.round((true + noise * rng.standard_normal(times.size)) / 0.5) * 0.5
    rail = rail_energy(Sensor(resolution=0.5), times, watts, 0.0, 12.0, 1)
    assert rail.joules_per_step is not None
    assert rail.error_joules is not None
    assert abs(rail.joules_per_step - 120) < 1.5 * rail.error_joules, "beyond what three standard errors allow"
    assert rail.error_joules < 0.1 * 120


def test_of_noise_alone_the_error_covers_about_95_per_cent() -> None:
    rng = np.random.default_rng(7)
    within = 0
    for _ in range(400):
        times = np.linspace(-0.01, 10.01, 120)
        rail = rail_energy(Sensor(), times, 10 + rng.standard_normal(120), 0.0, 10.0, 1)
        assert rail.joules_per_step is not None
        assert rail.error_joules is not None
        within += abs(rail.joules_per_step - 100) <= rail.error_joules
    assert 0.92 <= within / 400 <= 0.985


def test_a_coarse_sensor_has_half_a_count_of_error_at_least() -> None:
    rail = rail_energy(Sensor(resolution=0.4), spread(0, 10, 200), np.full(200, 8.0), 0.0, 10.0, 4)
    assert rail.error_joules == pytest.approx(0.2 * 10 / 4)


def test_a_sensor_that_averages_has_fewer_independent_readings_and_smears_the_ends() -> None:
    times = spread(0, 20, 400)
    watts = np.where(times < 1, 10.0, 12.0)
    at_once = rail_energy(Sensor(window_s=None), times, watts, 0.0, 20.0, 1)
    averaging = rail_energy(Sensor(window_s=1.0), times, watts, 0.0, 20.0, 1)
    assert at_once.independent > 390
    assert averaging.independent == 20
    assert averaging.joules_per_step == at_once.joules_per_step
    # Two standard errors of 20 readings, 20 s long; and 1 s of the 2 W between the lowest and the highest reading.
    assert averaging.error_joules == pytest.approx(2 * watts.std(ddof=1) / math.sqrt(20) * 20 + 1.0 * 2.0)
    assert at_once.error_joules == pytest.approx(2 * watts.std(ddof=1) / math.sqrt(at_once.independent) * 20)


@pytest.mark.parametrize(("window_s", "seconds"), [(1.0, 9.9), (None, 0.3), (0.5, 4.4)])
def test_too_few_independent_readings_carry_no_joules(window_s: float | None, seconds: float) -> None:
    count = max(2, int(seconds / 0.05)) if window_s else 7
    rail = rail_energy(Sensor(window_s=window_s), spread(0, seconds, count), np.full(count, 9.0), 0.0, seconds, 100)
    assert (rail.joules_per_step, rail.error_joules, rail.mean_w, rail.watts) == (None, None, None, [])
    assert rail.skipped is not None
    assert f"it needs {FEWEST}" in rail.skipped


@pytest.mark.parametrize("count", [0, 1])
def test_a_sensor_that_failed_carries_no_joules(count: int) -> None:
    rail = rail_energy(Sensor(), np.zeros(count), np.full(count, 9.0), 0.0, 5.0, 100)
    assert rail.joules_per_step is None
    assert rail.rate_hz is None
    assert rail.skipped == f"{count} of its readings succeeded"


def test_readings_that_stop_in_the_middle_carry_no_joules() -> None:
    rail = rail_energy(Sensor(), np.linspace(-0.1, 5, 100), np.full(100, 9.0), 0.0, 10.0, 100)
    assert rail.skipped == "its readings do not span the run"


def test_a_counter_is_read_at_both_ends() -> None:
    times = spread(0, 10, 101)
    joules = 700 + np.floor(times * 30)  # 30 W, in whole joules
    rail = rail_energy(Sensor("joules", resolution=1.0), times, joules, 0.0, 10.0, 10)
    assert rail.joules_per_step == pytest.approx(30, rel=0.01)
    assert rail.error_joules == pytest.approx(np.diff(joules).max() / 10)
    assert rail.mean_w == pytest.approx(30, rel=0.01)


def test_readings_of_a_counter_that_did_not_move_are_not_independent() -> None:
    times = spread(0, 10, 200)
    joules = np.repeat(np.arange(10.0), 20)
    assert independent_readings(Sensor("joules"), times, joules, 10.0) == 9
    assert rail_energy(Sensor("joules"), times, joules, 0.0, 10.0, 1).joules_per_step is None


def test_a_counter_that_falls_carries_no_joules() -> None:
    times = spread(0, 10, 100)
    joules = np.concatenate((np.arange(50.0), np.arange(50.0)))
    rail = rail_energy(Sensor("joules"), times, joules, 0.0, 10.0, 1)
    assert rail.skipped == "its energy counter went backwards"


@pytest.mark.parametrize("quantity", ["watts", "joules"])
def test_the_trace_is_short_and_has_the_mean_of_the_power(quantity: Quantity) -> None:
    times = spread(0, 50, 2_001)
    values = np.full(times.size, 20.0) if quantity == "watts" else 20.0 * times
    rail = rail_energy(Sensor(quantity), times, values, 0.0, 50.0, 1)
    assert len(rail.watts) == len(rail.times_s) == 200
    assert rail.watts == pytest.approx([20.0] * 200)
    assert rail.times_s == sorted(rail.times_s)


def test_the_sampler_brackets_the_run_and_reads_from_another_thread_meanwhile() -> None:
    sensor = Sensor()
    with Sampler([sensor], interval_s=0.01) as sampler:
        time.sleep(0.4)
    (rail,) = sampler.rails(steps=10)
    assert len(sensor.threads) == 2
    assert 0.4 <= sampler.seconds < 5
    assert rail.skipped is None
    assert rail.joules_per_step == pytest.approx(5.0 * sampler.seconds / 10)
    assert rail.samples >= FEWEST


def test_readings_that_fail_are_left_out() -> None:
    sensor = Sensor(readings=[None, 5.0, None, None])
    with Sampler([sensor], interval_s=0.01) as sampler:
        time.sleep(0.4)
    (rail,) = sampler.rails(steps=10)
    assert rail.mean_w == pytest.approx(5.0)


def test_the_thread_ends_with_the_block_also_where_the_run_fails() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), Sampler([Sensor()], interval_s=0.01):
        raise KeyError("the model")
    assert threading.active_count() == before
