"""Clocks, temperatures, power mode and throttling from files of the kernel, on any Linux and with more on a Jetson.

=====================  =====================================================================================
clocks                 ``cpufreq`` (kHz), ``devfreq`` (Hz): ``17000000.gpu`` on Orin, ``gpu-gpc-0`` on Thor; that
                       of memory from debugfs, which only root can read
temperatures           thermal zones and the processor's hwmon chip (m°C). A gated GPU's zone gives ``EAGAIN``
power mode             ``/var/lib/nvpmodel/status`` holds the number, ``/etc/nvpmodel.conf`` its name
throttling             counters since the start of the system: ``soctherm_oc`` on Orin and Thor (1: voltage too
                       low, 2: average current, 3: momentary current too high), ``thermal_throttle`` on x86;
                       and the cooling devices named ``*-throttle-alert`` that are on
=====================  =====================================================================================
"""

from __future__ import annotations

import re

from edgemem.bench.devices.reader import DeviceState, PowerSensor, Reading
from edgemem.bench.devices.tree import TreeReader

_CLOCKED = re.compile(r"gpu|g[a-z]\d\d[a-z]|emc|bwmgr")  # names such as ga10b are integrated GPUs
_EMC = "sys/kernel/debug/bpmp/debug/clk/emc/rate"
_PROCESSOR_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_CAUSES = {"oc1": "voltage too low", "oc2": "average current too high", "oc3": "momentary current too high"}
_PLAUSIBLE_C = (-50.0, 200.0)  # a sensor that is off gives -256 °C on some boards
_MODE = re.compile(r"^<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", re.MULTILINE)
_DEFAULT_MODE = re.compile(r"^<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>", re.MULTILINE)


class SysfsReader(TreeReader):
    """The machine as the kernel reports it."""

    def sensors(self) -> list[PowerSensor]:
        """None: this source has no power sensors."""
        return []

    def state(self) -> DeviceState:
        """The state now."""
        return DeviceState(
            clocks_mhz=self._clocks(),
            governors=self._governors(),
            temperatures_c=self._temperatures(),
            power_mode=self.power_mode(),
            throttling=self._alerts(),
            throttle_events=self._events(),
        )

    def power_mode(self) -> str | None:
        """The mode of nvpmodel, as ``MAXN_SUPER (2)``; ``None``: this machine has no nvpmodel."""
        config = self._tree.text("etc/nvpmodel.conf") or ""
        names = {int(number): name for number, name in _MODE.findall(config)}
        status = self._tree.text("var/lib/nvpmodel/status")
        if status is not None:
            key, _, number = status.partition(":")
            if key.strip() == "pmode" and number.strip().isdigit():
                return f"{names.get(int(number), 'unnamed')} ({int(number)})"
            self._tree.problems["/var/lib/nvpmodel/status"] = f"holds {status[:32]!r}, not pmode:NUMBER"
        if default := _DEFAULT_MODE.search(config):
            return f"{names.get(int(default[1]), 'unnamed')} ({int(default[1])}), the default, since none was chosen"
        return None

    def _clocks(self) -> list[Reading]:
        clocks = []
        for policy in self._tree.glob("sys/devices/system/cpu/cpufreq/policy*"):
            if (khz := self._tree.integer(policy / "scaling_cur_freq")) is not None:
                clocks.append(Reading(f"cpu {policy.name}", khz / 1e3))
        for device in self._tree.glob("sys/class/devfreq/*"):
            if _CLOCKED.search(device.name) and (hz := self._tree.integer(device / "cur_freq")) is not None:
                clocks.append(Reading(device.name, hz / 1e6))
        if (hz := self._tree.integer(_EMC)) is not None:
            clocks.append(Reading("emc", hz / 1e6))
        return clocks

    def _governors(self) -> list[str]:
        files = [(folder.name, folder / "governor") for folder in self._tree.glob("sys/class/devfreq/*")]
        named = [(name, self._tree.text(file)) for name, file in files if _CLOCKED.search(name)]
        policies = self._tree.glob("sys/devices/system/cpu/cpufreq/policy*/scaling_governor")
        named += [("cpu", governor) for governor in sorted({self._tree.text(file) or "" for file in policies})]
        return [f"{name}: {governor}" for name, governor in named if governor]

    def _temperatures(self) -> list[Reading]:
        files = [(zone / "type", zone / "temp") for zone in self._tree.glob("sys/class/thermal/thermal_zone*")]
        for chip in self._tree.glob("sys/class/hwmon/hwmon*"):
            if self._tree.text(chip / "name") in _PROCESSOR_CHIPS:
                files.append((chip / "name", chip / "temp1_input"))
        readings = []
        for name_file, file in files:
            name, millidegrees = self._tree.text(name_file), self._tree.integer(file)
            if name and millidegrees is not None and _PLAUSIBLE_C[0] < millidegrees / 1e3 < _PLAUSIBLE_C[1]:
                readings.append(Reading(name, millidegrees / 1e3))
        return readings

    def _alerts(self) -> list[str]:
        alerts = []
        for device in self._tree.glob("sys/class/thermal/cooling_device*"):
            name = self._tree.text(device / "type") or ""
            if name.endswith("throttle-alert") and (self._tree.integer(device / "cur_state") or 0) > 0:
                alerts.append(name)
        return alerts

    def _events(self) -> list[Reading]:
        events = []
        for chip in self._tree.glob("sys/class/hwmon/hwmon*"):
            if self._tree.text(chip / "name") == "soctherm_oc":
                for file in self._tree.glob(f"{chip.relative_to(self._tree.root)}/oc*_event_cnt"):
                    if (count := self._tree.integer(file)) is not None:
                        number = file.name.removesuffix("_event_cnt")
                        events.append(Reading(_CAUSES.get(number, number), float(count)))
        for what, total in (("core", sum), ("package", max)):
            files = self._tree.glob(f"sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/{what}_throttle_count")
            counts = [count for file in files if (count := self._tree.integer(file)) is not None]
            if counts:
                events.append(Reading(f"{what} too hot", float(total(counts))))
        return events
