"""A GPU's figures come through NVML; what it does not support is left out, and the reason told."""

# ruff: noqa: N802  (the names are NVML's)

from __future__ import annotations

import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgemem.bench.devices.found import Devices
from edgemem.bench.devices.nvml import NvmlReader
from edgemem.bench.devices.reader import DeviceState, Reading


class NVMLError(Exception):
    pass


class StandIn(ModuleType):
    """``pynvml`` with answers by function; a function without one is not supported."""

    NVMLError = NVMLError
    NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 0, 2, 0

    def __init__(self, answers: dict[str, Any], devices: int = 1) -> None:
        super().__init__("pynvml")
        reasons = {"None": 0, "GpuIdle": 1, "SwPowerCap": 4, "HwThermalSlowdown": 0x40, "All": 0x45}
        vars(self).update({f"nvmlClocksEventReason{name}": bits for name, bits in reasons.items()})
        vars(self).update({f"nvmlClocksThrottleReason{name}": bits for name, bits in reasons.items()})
        self.answers, self.devices = answers, devices
        self.asked_bus: bytes | None = None

    def nvmlInit(self) -> None:
        if self.devices == 0:
            raise NVMLError("NVML Shared Library Not Found")

    def nvmlDeviceGetCount(self) -> int:
        return self.devices

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"handle {index}"

    def nvmlDeviceGetHandleByPciBusId(self, bus: bytes) -> str:
        self.asked_bus = bus
        return "handle"

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def ask(handle: str, *arguments: Any) -> Any:
            assert handle.startswith("handle")
            key = (name.removeprefix("nvmlDeviceGet"), *arguments)
            answer = self.answers.get(key, self.answers.get(key[0]))
            if answer is None:
                raise NVMLError("Not Supported")
            return answer

        return ask


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn(
        {
            "TotalEnergyConsumption": 7_500_250,
            "PowerUsage": 61_300,
            ("ClockInfo", 0): 1980,
            ("ClockInfo", 2): 2619,
            "Temperature": 41,
            "PerformanceState": 0,
            "PowerManagementLimit": 700_000,
            "CurrentClocksEventReasons": 4 | 1,
            "ComputeRunningProcesses": [
                SimpleNamespace(pid=1, usedGpuMemory=5),
                SimpleNamespace(pid=os.getpid(), usedGpuMemory=734_003_200),
            ],
        }
    )
    monkeypatch.setitem(sys.modules, "pynvml", module)
    return module


def test_a_gpus_state_is_read(nvml: StandIn) -> None:
    assert NvmlReader().state() == DeviceState(
        clocks_mhz=[Reading("GPU graphics", 1980.0), Reading("GPU memory", 2619.0)],
        temperatures_c=[Reading("GPU", 41.0)],
        power_mode="P0, limit 700 W",
        throttling=["GPU: SwPowerCap"],
    )


def test_the_energy_counter_is_taken_before_power_which_is_an_average(nvml: StandIn) -> None:
    (energy,) = NvmlReader().sensors()
    assert (energy.quantity, energy.read()) == ("joules", 7_500.25)
    del nvml.answers["TotalEnergyConsumption"]
    (power,) = NvmlReader().sensors()
    assert (power.quantity, power.read(), power.window_s) == ("watts", 61.3, 1.0)


def test_the_gpu_is_the_one_that_cuda_uses(nvml: StandIn) -> None:
    nvml.devices = 4
    assert NvmlReader("0000:3B:00.0").state().temperatures_c
    assert nvml.asked_bus == b"0000:3B:00.0"


def test_which_of_several_gpus_is_meant_is_not_guessed(nvml: StandIn) -> None:
    nvml.devices = 4
    reader = NvmlReader()
    assert (list(reader.sensors()), reader.state()) == ([], DeviceState())
    assert reader.problems == {"NVML": "it is unknown which of 4 GPUs runs the model"}


def test_memory_is_that_of_this_process(nvml: StandIn) -> None:
    assert NvmlReader().process_bytes() == 734_003_200
    nvml.answers["ComputeRunningProcesses"] = []
    assert NvmlReader().process_bytes() is None


def test_where_nothing_is_supported_as_on_a_jetson_nothing_is_made_up(nvml: StandIn) -> None:
    nvml.answers.clear()
    reader = NvmlReader()
    assert (list(reader.sensors()), reader.state(), reader.process_bytes()) == ([], DeviceState(), None)
    assert reader.problems["NVML PowerUsage"] == "Not Supported"


def test_an_earlier_driver_names_its_reasons_otherwise(nvml: StandIn) -> None:
    del nvml.answers["CurrentClocksEventReasons"]
    nvml.answers["CurrentClocksThrottleReasons"] = 4
    assert NvmlReader().state().throttling == ["GPU: SwPowerCap"]


def test_without_a_driver_there_is_no_gpu(nvml: StandIn, tmp_path: Any) -> None:
    nvml.devices = 0
    devices = Devices(tmp_path, NvmlReader())
    assert devices.no_power == "no power sensor found (NVML: NVML Shared Library Not Found)"


def test_without_the_package_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert NvmlReader().problems == {"NVML": "nvidia-ml-py is not installed"}
