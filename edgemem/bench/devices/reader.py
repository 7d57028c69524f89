"""What a source of readings offers; :mod:`.found` holds all those of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

from edgemem.bench.result import DeviceState

Quantity = Literal["watts", "joules"]


class PowerSensor(Protocol):
    """One rail, package or board whose power or energy can be read."""

    @property
    def name(self) -> str:
        """As the device calls it."""

    @property
    def covers(self) -> str:
        """What the power is of, in words."""

    @property
    def is_total(self) -> bool:
        """Whether it is of the whole device rather than of a part."""

    @property
    def quantity(self) -> Quantity:
        """``"watts"``: a reading is power; ``"joules"``: it is a counter of energy, which only grows."""

    @property
    def window_s(self) -> float | None:
        """Seconds over which a reading of power is averaged; ``None``: the device does not tell."""

    @property
    def resolution(self) -> float:
        """The smallest difference that the last reading could have shown, in the quantity's unit."""

    def read(self) -> float | None:
        """A reading; ``None``: it failed this time."""


class Reader(Protocol):
    """One source of readings. No method raises: what cannot be read is left out and listed in ``problems``."""

    def sensors(self) -> Sequence[PowerSensor]:
        """The power sensors that give a reading now."""

    def state(self) -> DeviceState:
        """Clocks, temperatures, power mode and throttling now."""

    @property
    def problems(self) -> dict[str, str]:
        """What is there and could not be read → why."""
