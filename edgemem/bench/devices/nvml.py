"""NVIDIA's GPUs through NVML (package ``nvidia-ml-py``, imported as ``pynvml``).

On a Jetson, NVML may start and then support almost nothing. So each query may fail, and what a device does not support
is left out. It ran on an H200.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

from edgemem.bench.devices.reader import DeviceState, Quantity, Reading

# NVML's manual on nvmlDeviceGetPowerUsage: an average over 1 s from Ampere on, GA100 excepted.
_WINDOW_S = 1.0
_IDLE_REASONS = ("GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks", "None", "All")
_REASON = "nvmlClocksEventReason"
_EARLIER_REASON = "nvmlClocksThrottleReason"


class NvmlEnergy:
    """Energy counter of the board, in millijoules since the driver was loaded (Volta and later).

    Args:
        query: Asks NVML for the counter; returns ``None`` if there is none.
    """

    name = "GPU"
    covers = "the GPU's board"
    is_total = False
    quantity: Quantity = "joules"
    window_s: float | None = None
    resolution = 1e-3

    def __init__(self, query: Callable[[], Any]) -> None:
        self._query = query

    def read(self) -> float | None:
        """Joules."""
        millijoules = self._query()
        return None if millijoules is None else millijoules / 1e3


class NvmlPower:
    """Power of the board.

    Args:
        query: Asks NVML for milliwatts; returns ``None`` if it does not report them.
    """

    name = "GPU"
    covers = "the GPU's board"
    is_total = False
    quantity: Quantity = "watts"
    window_s: float | None = _WINDOW_S
    resolution = 1e-3

    def __init__(self, query: Callable[[], Any]) -> None:
        self._query = query

    def read(self) -> float | None:
        """Watts."""
        milliwatts = self._query()
        return None if milliwatts is None else milliwatts / 1e3


class NvmlReader:
    """One GPU.

    Args:
        bus_id: PCI bus id of CUDA's device, since NVML numbers devices in another order; ``None``: unknown, which is
            enough if there is one GPU.

    Attributes:
        problems: See :class:`~edgemem.bench.devices.reader.Reader`.
    """

    def __init__(self, bus_id: str | None = None) -> None:
        self.problems: dict[str, str] = {}
        self._handle: Any = None
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            self.problems["NVML"] = "nvidia-ml-py is not installed"
            return
        try:
            self._nvml.nvmlInit()
            if bus_id is not None:
                self._handle = self._nvml.nvmlDeviceGetHandleByPciBusId(bus_id.encode())
            elif (count := self._nvml.nvmlDeviceGetCount()) == 1:
                self._handle = self._nvml.nvmlDeviceGetHandleByIndex(0)
            else:
                self.problems["NVML"] = f"it is unknown which of {count} GPUs runs the model"
        except self._nvml.NVMLError as error:
            self.problems["NVML"] = str(error)

    def sensors(self) -> Sequence[NvmlEnergy | NvmlPower]:
        """The energy counter, or power if there is none."""
        energy = NvmlEnergy(lambda: self._ask("nvmlDeviceGetTotalEnergyConsumption"))
        if energy.read() is not None:
            return [energy]
        power = NvmlPower(lambda: self._ask("nvmlDeviceGetPowerUsage"))
        return [power] if power.read() is not None else []

    def state(self) -> DeviceState:
        """Clocks, temperature, performance state, power limit, and reasons for lower clocks."""
        if self._handle is None:
            return DeviceState()
        nvml = self._nvml
        clocks = [
            (f"GPU {name}", self._ask("nvmlDeviceGetClockInfo", kind))
            for name, kind in (("graphics", nvml.NVML_CLOCK_GRAPHICS), ("memory", nvml.NVML_CLOCK_MEM))
        ]
        degrees = self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
        state, limit = self._ask("nvmlDeviceGetPerformanceState"), self._ask("nvmlDeviceGetPowerManagementLimit")
        mode = [f"P{state}" if state is not None else "", f"limit {limit / 1e3:.0f} W" if limit is not None else ""]
        return DeviceState(
            clocks_mhz=[Reading(name, float(mhz)) for name, mhz in clocks if mhz is not None],
            temperatures_c=[] if degrees is None else [Reading("GPU", float(degrees))],
            power_mode=", ".join(filter(None, mode)) or None,
            throttling=self._reasons(),
        )

    def process_bytes(self) -> int | None:
        """Bytes of the GPU's memory that this process holds; ``None``: the driver does not report it."""
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        return next((p.usedGpuMemory for p in processes or [] if p.pid == os.getpid()), None)

    def _reasons(self) -> list[str]:
        bits, prefix = self._ask("nvmlDeviceGetCurrentClocksEventReasons"), _REASON
        if bits is None:  # drivers before 535
            bits, prefix = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons"), _EARLIER_REASON
        names = [name for name in dir(self._nvml) if name.startswith(prefix)]
        found = [n.removeprefix(prefix) for n in names if (bits or 0) & getattr(self._nvml, n)]
        return [f"GPU: {name}" for name in found if name not in _IDLE_REASONS]

    def _ask(self, function: str, *arguments: Any) -> Any:
        if self._handle is None or not hasattr(self._nvml, function):
            return None
        try:
            return getattr(self._nvml, function)(self._handle, *arguments)
        except self._nvml.NVMLError as error:
            self.problems[f"NVML {function.removeprefix('nvmlDeviceGet')}"] = str(error)
            return None
