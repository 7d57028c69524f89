"""What the boards' files say is what the readers say; what is missing, closed or garbage never stops them."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemem.bench.devices.found import Devices, throttled
from edgemem.bench.devices.ina import InaReader
from edgemem.bench.devices.rapl import RaplReader
from edgemem.bench.devices.reader import DeviceState, Reading
from edgemem.bench.devices.sysfs import SysfsReader
from edgemem.bench.devices.tree import Tree
from tests.bench.devices import recorded

BOARDS = [recorded.orin_nano, recorded.agx_orin, recorded.thor, recorded.desktop]


def watts(root: Path) -> dict[str, float | None]:
    return {sensor.name: sensor.read() for sensor in InaReader(Tree(root)).sensors()}


def as_dict(readings: list[Reading]) -> dict[str, float]:
    return {reading.name: reading.value for reading in readings}


def test_an_orin_nanos_rails_are_volts_times_amperes(tmp_path: Path) -> None:
    assert watts(recorded.orin_nano(tmp_path)) == {
        "VDD_IN": pytest.approx(5.056 * 1.864),
        "VDD_CPU_GPU_CV": pytest.approx(5.056 * 0.536),
        "VDD_SOC": pytest.approx(5.056 * 0.448),
    }


def test_a_monitor_seen_by_class_and_by_driver_counts_once(tmp_path: Path) -> None:
    assert len(InaReader(Tree(recorded.orin_nano(tmp_path))).sensors()) == 3


def test_where_only_the_drivers_folder_is_mounted_the_rails_are_found_there(tmp_path: Path) -> None:
    root = recorded.orin_nano(tmp_path)
    for entry in (root / "sys/class/hwmon").iterdir():
        if entry.is_symlink():
            entry.unlink()
    assert set(watts(root)) == {"VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"}


def test_only_a_rail_that_is_the_whole_module_is_a_total(tmp_path: Path) -> None:
    nano = InaReader(Tree(recorded.orin_nano(tmp_path / "nano"))).sensors()
    agx = InaReader(Tree(recorded.agx_orin(tmp_path / "agx"))).sensors()
    thor = InaReader(Tree(recorded.thor(tmp_path / "thor"))).sensors()
    assert [s.name for s in nano if s.is_total] == ["VDD_IN"]
    assert [s.name for s in agx if s.is_total] == []
    assert [s.name for s in thor if s.is_total] == ["VIN"]


def test_an_agx_orins_unconnected_channels_and_sums_are_no_rails(tmp_path: Path) -> None:
    reader = InaReader(Tree(recorded.agx_orin(tmp_path)))
    assert {s.name for s in reader.sensors()} == {"VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO"}
    assert reader.problems == {}, "a channel that is off is not read"


def test_a_thors_board_input_is_the_power_that_its_chip_computes(tmp_path: Path) -> None:
    readings = watts(recorded.thor(tmp_path))
    assert readings["VIN"] == pytest.approx(22.943)
    assert readings["VDD_GPU"] == 0.0, "a gated GPU draws nothing, which is a reading"


def test_the_resolution_of_a_rail_follows_from_its_shunt(tmp_path: Path) -> None:
    root = recorded.orin_nano(tmp_path)
    rail = InaReader(Tree(root)).sensors()[0]
    # 40 µV over 5 mΩ are 8 mA, at 5.056 V; and 8 mV at 1.864 A
    assert rail.resolution == pytest.approx(5.056 * 0.008 + 1.864 * 0.008)
    assert rail.window_s == pytest.approx(0.008)


def test_without_a_shunts_value_the_files_unit_is_the_resolution(tmp_path: Path) -> None:
    root = recorded.orin_nano(tmp_path)
    for file in root.glob("sys/devices/**/shunt*_resistor"):
        file.unlink()
    for file in root.glob("sys/devices/**/update_interval"):
        file.write_text("soon\n")
    rail = InaReader(Tree(root)).sensors()[0]
    assert rail.resolution == pytest.approx(5.056 * 0.001 + 1.864 * 0.008)
    assert rail.window_s is None


def test_clocks_are_in_megahertz_whatever_the_kernel_counts_in(tmp_path: Path) -> None:
    assert as_dict(SysfsReader(Tree(recorded.orin_nano(tmp_path / "nano"))).state().clocks_mhz) == {
        "cpu policy0": 1510.4,
        "cpu policy4": 729.6,
        "17000000.gpu": 624.75,
        "emc": 2133.0,
    }
    thor = as_dict(SysfsReader(Tree(recorded.thor(tmp_path / "thor"))).state().clocks_mhz)
    assert thor == {"cpu policy0": 2601.0, "bwmgr": 4266.0, "gpu-gpc-0": 1575.0, "gpu-nvd-0": 1692.0}


def test_clock_domains_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    clocks = SysfsReader(Tree(recorded.desktop(tmp_path))).state().clocks_mhz
    assert [clock.name for clock in clocks] == ["cpu policy0", "cpu policy1", "cpu policy10"]


def test_a_sensor_that_is_off_gives_no_temperature(tmp_path: Path) -> None:
    nano = SysfsReader(Tree(recorded.orin_nano(tmp_path / "nano"))).state()
    assert as_dict(nano.temperatures_c) == {"cpu-thermal": 51.25, "gpu-thermal": 50.5, "tj-thermal": 51.25}
    reader = SysfsReader(Tree(recorded.thor(tmp_path / "thor")))
    assert as_dict(reader.state().temperatures_c) == {"tj-thermal": 55.1, "cpu-thermal": 53.7}
    assert list(reader.problems) == ["/sys/class/thermal/thermal_zone2/temp"]


@pytest.mark.parametrize(
    ("board", "mode"),
    [
        (recorded.orin_nano, "MAXN_SUPER (2)"),
        (recorded.agx_orin, "MAXN (0), the default, since none was chosen"),
        (recorded.thor, "120W (1)"),
        (recorded.desktop, None),
    ],
)
def test_the_power_mode_has_its_name(tmp_path: Path, board: Callable[[Path], Path], mode: str | None) -> None:
    assert SysfsReader(Tree(board(tmp_path))).state().power_mode == mode


def test_a_mode_that_the_configuration_does_not_name_keeps_its_number(tmp_path: Path) -> None:
    recorded.write(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007"})
    assert SysfsReader(Tree(tmp_path)).power_mode() == "unnamed (7)"


def test_governors_are_told(tmp_path: Path) -> None:
    assert SysfsReader(Tree(recorded.orin_nano(tmp_path))).state().governors == [
        "17000000.gpu: nvhost_podgov",
        "cpu: schedutil",
    ]


def test_throttling_is_what_is_on_at_the_end_and_what_was_counted_meanwhile(tmp_path: Path) -> None:
    root = recorded.thor(tmp_path)
    reader = SysfsReader(Tree(root))
    before = reader.state()
    assert before.throttling == ["gpu-throttle-alert"]
    recorded.overcurrent(root, 7, (0, 0, 183))
    recorded.write(root, {"sys/class/thermal/cooling_device0/cur_state": 0})
    assert throttled(before, reader.state()) == ["momentary current too high: 4 times"]


def test_a_pcs_throttle_counters_are_summed_over_cores_and_not_over_packages(tmp_path: Path) -> None:
    events = as_dict(SysfsReader(Tree(recorded.desktop(tmp_path))).state().throttle_events)
    assert events == {"core too hot": 1.0, "package too hot": 3.0}


def test_what_was_counted_before_the_run_is_not_the_runs(tmp_path: Path) -> None:
    reader = SysfsReader(Tree(recorded.orin_nano(tmp_path)))
    assert reader.state().throttle_events
    assert throttled(reader.state(), reader.state()) == []


def test_a_machine_that_counts_no_throttling_claims_none() -> None:
    assert throttled(DeviceState(), DeviceState(throttle_events=[Reading("new", 5.0)])) == []


def test_an_energy_counter_goes_on_where_it_begins_again(tmp_path: Path) -> None:
    root = recorded.desktop(tmp_path)
    package, core = RaplReader(Tree(root)).sensors()
    assert (package.name, core.name) == ("package-0", "core of package-0")
    first = package.read()
    recorded.write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": 1_671_150})
    second = package.read()
    assert first is not None
    assert second is not None
    assert second - first == pytest.approx(0.32885 + 1.67115)
    recorded.write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": 3_671_150})
    assert package.read() == pytest.approx(second + 2.0)


def test_a_counter_that_is_closed_is_no_sensor_and_the_reason_is_told(tmp_path: Path) -> None:
    devices = Devices(recorded.desktop(tmp_path, energy_uj=None))
    assert list(devices.sensors) == []
    assert devices.no_power.startswith("no power sensor found (/sys/class/powercap/intel-rapl:0/energy_uj: ")
    assert "\n" not in devices.no_power


def test_files_that_users_may_not_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = recorded.desktop(tmp_path)
    read = Path.read_bytes

    def closed(path: Path) -> bytes:
        if path.name == "energy_uj":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", closed)
    devices = Devices(root)
    assert list(devices.sensors) == []
    assert "/sys/class/powercap/intel-rapl:0/energy_uj: not readable by this user" in devices.problems


def test_a_machine_without_any_of_it_says_so_in_one_line(tmp_path: Path) -> None:
    devices = Devices(tmp_path)
    assert (list(devices.sensors), devices.problems, devices.state()) == ([], [], DeviceState())
    assert devices.no_power == "no power sensor found"


@pytest.mark.parametrize("board", BOARDS)
def test_every_board_gives_one_state_from_all_its_sources(tmp_path: Path, board: Callable[[Path], Path]) -> None:
    devices = Devices(board(tmp_path))
    assert devices.sensors
    state = devices.state()
    assert state.clocks_mhz
    assert state.temperatures_c
    assert state.governors


GARBAGE = st.sampled_from(
    ["", "-", "12 mA", "0x10", "NaN", "\x00\xff", "99999999999999999999", "pmode:", "pmode:x", "-5"]
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_and_holes_in_any_file_never_raise(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = data.draw(st.sampled_from(BOARDS))(tmp_path_factory.mktemp("board"))
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    for path in data.draw(st.lists(st.sampled_from(files), min_size=1, max_size=25, unique=True)):
        content = data.draw(st.one_of(GARBAGE, st.none()))
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode("latin-1"))
    devices = Devices(root)
    devices.state()
    for sensor in devices.sensors:
        assert sensor.read() is not None
        assert sensor.resolution >= 0
    assert all(problem.startswith("/") for problem in devices.problems)
