"""Energy counters of x86 processors (RAPL) in ``/sys/class/powercap``. On most systems only root can read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgemem.bench.devices.reader import DeviceState, Quantity
from edgemem.bench.devices.tree import Tree, TreeReader

_COVERS = {"psys": "the whole platform", "core": "the cores", "uncore": "the processor's graphics", "dram": "memory"}


class EnergyZone:
    """A counter of µJ that wraps to 0; its readings do not.

    Args:
        tree: Where its files are.
        folder: Folder of the zone.
        name: Name of the zone.
    """

    quantity: Quantity = "joules"
    window_s: float | None = None
    resolution = 1e-6

    def __init__(self, tree: Tree, folder: Path, name: str) -> None:
        self._tree = tree
        self._file = folder / "energy_uj"
        self._range = tree.integer(folder / "max_energy_range_uj") or 0
        self._last = 0
        self._base = 0
        self.name = name
        self.covers = "one processor" if name.startswith("package") else _COVERS.get(name.partition(" ")[0], "a part")
        self.is_total = name == "psys"

    def read(self) -> float | None:
        """Joules; they only grow."""
        count = self._tree.integer(self._file)
        if count is None:
            return None
        if count < self._last:
            if not self._range:
                return None
            self._base += self._range
        self._last = count
        return (self._base + count) / 1e6


class RaplReader(TreeReader):
    """The zones of the processor."""

    def sensors(self) -> Sequence[EnergyZone]:
        """The zones that can be read. The kernel uses the name ``intel-rapl`` for AMD, too."""
        zones = []
        for folder in self._tree.glob("sys/class/powercap/intel-rapl:*"):
            name = self._tree.text(folder / "name")
            if not name:
                continue
            if folder.name.count(":") > 1:  # a part: intel-rapl:0:1 belongs to intel-rapl:0
                whole = self._tree.text(folder.parent / folder.name.rpartition(":")[0] / "name")
                name = f"{name} of {whole or 'the processor'}"
            zones.append(EnergyZone(self._tree, folder, name))
        return [zone for zone in zones if zone.read() is not None]

    def state(self) -> DeviceState:
        """Nothing: this source has only counters."""
        return DeviceState()
