"""The benchmark takes in what the device tells, and does without where it tells nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgemem.bench import subject, suite
from edgemem.bench.devices.found import Devices
from edgemem.bench.measure import Progress, silent
from edgemem.bench.result import BenchResult
from edgemem.bench.sections.conditions import Conditions
from edgemem.bench.sections.energy import Energy
from edgemem.bench.sections.gpu_time import GpuTime
from edgemem.bench.sections.steps import Steps
from edgemem.bench.subject import Options, Plan
from edgemem.bundle import Bundle
from tests.bench.devices import recorded
from tests.bench.tiny import write_tiny

PLAN = replace(
    Plan.quick(),
    steps=20, warmup=2, rounds=2, turn=2, prefill=8, prefill_rounds=1, positions=(0, 1_000), energy_seconds=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny(tmp_path_factory.mktemp("device") / "tiny")


def measured(
    bundle: Bundle, root: Path, monkeypatch: pytest.MonkeyPatch, progress: Progress = silent, plan: Plan = PLAN
) -> BenchResult:
    monkeypatch.setattr(subject, "devices_of", lambda session, stream: Devices(root))
    options = Options(runtime="onnxruntime", device="cpu", threads=1, baselines=False, quick=True)
    return suite.run(bundle.path, options, plan, progress)


def words(result: BenchResult, key: str) -> str:
    table = next(table for table in result.tables() if table.key == key)
    return "\n".join([*(" ".join(row) for row in table.rows), *table.notes])


def test_an_orin_nanos_rails_give_joules_a_step(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(PLAN, energy_seconds=0.8)
    result = measured(bundle, recorded.orin_nano(tmp_path), monkeypatch, plan=plan)
    total = result[Energy].rails[0]
    assert (total.name, total.is_total, total.skipped) == ("VDD_IN", True, None)
    assert total.joules_per_step == pytest.approx(5.056 * 1.864 * result[Energy].seconds / result[Energy].steps)
    assert total.error_joules == pytest.approx(
        0.5 * 8e-3 * (5.056 + 1.864) * result[Energy].seconds / result[Energy].steps, rel=1e-6
    )
    assert result[Energy].seconds >= plan.energy_seconds
    assert "VDD_IN" in words(result, "energy")
    assert "MAXN_SUPER (2)" in words(result, "conditions")
    assert "CPU 729.6" not in words(result, "conditions")
    assert "clock, CPU 730 to 1,510 MHz" in words(result, "conditions")
    assert "Not throttled, as far as this device reports." in words(result, "conditions")
    json.dumps(result.to_json(), allow_nan=False)


def test_states_are_taken_before_the_steps_right_after_them_and_at_the_end(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = recorded.orin_nano(tmp_path)

    def warm(what: str, done: int, total: int) -> None:
        millidegrees = {"steps": 60_000, "prefill": 70_000}
        if done == total and what in millidegrees:
            recorded.zones(root, {"cpu-thermal": millidegrees[what]})

    states = measured(bundle, root, monkeypatch, warm)[Conditions]
    assert [s.temperatures_c[0].value for s in (states.before, states.loaded, states.after)] == [51.25, 60.0, 70.0]


def test_a_gpu_that_is_held_down_is_told(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured(bundle, recorded.thor(tmp_path), monkeypatch)
    assert result[Conditions].throttled == ["gpu-throttle-alert"]
    assert "Throttled: gpu-throttle-alert." in words(result, "conditions")
    assert "/sys/class/thermal/thermal_zone2/temp" in words(result, "conditions")


@pytest.mark.parametrize(
    ("board", "note"),
    [
        (lambda root: root, "Not measured: no power sensor found."),
        (
            lambda root: recorded.desktop(root, energy_uj=None),
            "Not measured: no power sensor found (/sys/class/powercap/",
        ),
    ],
)
def test_without_a_power_sensor_one_line_says_so_and_the_rest_is_as_ever(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: Callable[[Path], Path], note: str
) -> None:
    result = measured(bundle, board(tmp_path), monkeypatch)
    assert result.get(Energy) is None
    text = words(result, "energy")
    assert text.startswith(note)
    assert "\n" not in text
    assert result[Steps].latency.count == PLAN.steps


def test_a_counter_that_stands_still_carries_no_joules(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = measured(bundle, recorded.desktop(tmp_path), monkeypatch)
    assert {rail.name: rail.joules_per_step for rail in result[Energy].rails} == {
        "package-0": None,
        "core of package-0": None,
    }
    assert "package-0: not measured: 0 independent readings in 0.1 s are too few" in words(result, "energy")


def test_a_machine_that_tells_nothing_has_no_table_of_clocks(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = measured(bundle, tmp_path, monkeypatch)
    assert "conditions" not in [table.key for table in result.tables()]
    assert "gpu_time" not in [table.key for table in result.tables()]
    assert result.skipped(GpuTime) is None, "a CPU has no time on a GPU to explain"
