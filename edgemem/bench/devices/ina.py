"""Rails measured by the INA3221 and INA2xx monitors of Jetson boards, through the kernel's hwmon files.

Units are the kernel's (``Documentation/hwmon/ina3221.rst``, ``ina238.rst``): mV, mA, µW, and shunts in µΩ. An INA3221
counts 40 µV of shunt and 8 mV of bus voltage; an INA238 5 µV and 3.125 mV (Texas Instruments, SBOS576 and SBOSA20).

============  ==========================================================================================
board         rails
============  ==========================================================================================
Orin Nano/NX  ``VDD_IN`` (the module), ``VDD_CPU_GPU_CV``, ``VDD_SOC``
AGX Orin      ``VDD_GPU_SOC``, ``VDD_CPU_CV``, ``VIN_SYS_5V0``, ``VDDQ_VDD2_1V8AO``; none is a total
AGX Thor      ``VDD_GPU``, ``VDD_CPU_SOC_MSS``, ``VIN_SYS_5V0``, and an INA238 on ``VIN`` (module and carrier)
============  ==========================================================================================

Rails cannot be added up: some feed others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemem.bench.devices.reader import DeviceState, Quantity
from edgemem.bench.devices.tree import Tree, TreeReader

_FOLDERS = ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*")
_TOTALS = {"VDD_IN": "the whole module", "POM_5V_IN": "the whole module", "VIN": "module and carrier board"}
_UNCONNECTED = "NC"
_INA3221_CHANNELS = (1, 2, 3)  # 4 to 7 are shunt voltages and sums


class Rail:
    """One channel: power as the chip computes it, otherwise bus voltage × current.

    Args:
        tree: Where its files are.
        folder: The chip's ``hwmonN``.
        channel: Number in the names of its files.
        name: Name of the rail.
        counts: Volts of shunt and of bus in one count of the chip.
    """

    quantity: Quantity = "watts"

    def __init__(self, tree: Tree, folder: Path, channel: int, name: str, counts: tuple[float, float]) -> None:
        self._tree = tree
        self._volts, self._amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
        self._power = folder / f"power{channel}_input"
        self._computed = tree.text(self._power) is not None
        self.name = name
        self.covers = _TOTALS.get(name, "one rail")
        self.is_total = name in _TOTALS
        milliseconds = tree.integer(folder / "update_interval")
        self.window_s = milliseconds / 1e3 if milliseconds else None
        shunt = tree.integer(folder / f"shunt{channel}_resistor") or tree.integer(folder / "shunt_resistor")
        # Without the value of the shunt, readings differ by at least the unit of the file.
        self._ampere_count = counts[0] / (shunt * 1e-6) if shunt and shunt > 0 else 1e-3
        self._volt_count = counts[1]
        self.resolution = 0.0

    def read(self) -> float | None:
        """Watts."""
        millivolts, milliamperes = self._tree.integer(self._volts), self._tree.integer(self._amperes)
        if millivolts is not None and milliamperes is not None:
            volts, amperes = millivolts / 1e3, milliamperes / 1e3
            self.resolution = abs(volts) * self._ampere_count + abs(amperes) * self._volt_count
        if self._computed:
            microwatts = self._tree.integer(self._power)
            return None if microwatts is None else microwatts / 1e6
        if millivolts is None or milliamperes is None:
            return None
        return volts * amperes


class InaReader(TreeReader):
    """Every INA monitor with a driver."""

    def sensors(self) -> Sequence[Rail]:
        """The connected rails that give a reading."""
        found: dict[Path, list[Rail]] = {}
        for pattern in _FOLDERS:
            for folder in self._tree.glob(pattern):
                chip = self._tree.text(folder / "name") or ""
                if chip.startswith("ina"):
                    found.setdefault(folder.resolve(), self._rails(folder, chip))
        return [rail for rails in found.values() for rail in rails if rail.read() is not None]

    def state(self) -> DeviceState:
        """Nothing: this source has only rails."""
        return DeviceState()

    def _rails(self, folder: Path, chip: str) -> list[Rail]:
        if not chip.startswith("ina3221"):
            name = self._tree.text(folder / "label") or self._tree.text(folder / "in1_label") or chip
            return [Rail(self._tree, folder, 1, name, (5e-6, 3.125e-3))]
        rails = []
        for channel in _INA3221_CHANNELS:
            label = self._tree.text(folder / f"in{channel}_label")
            is_off = label == _UNCONNECTED or self._tree.text(folder / f"in{channel}_enable") == "0"
            if label and not is_off:
                rails.append(Rail(self._tree, folder, channel, label, (40e-6, 8e-3)))
        return rails
