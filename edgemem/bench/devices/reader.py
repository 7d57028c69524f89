"""The interface of a source of readings. :mod:`.found` has all sources of a machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Quantity = Literal["watts", "joules"]


@dataclass(frozen=True)
class Reading:
    """One figure that a device reports: a clock, a temperature, a counter."""

    name: str
    value: float


@dataclass(frozen=True)
class DeviceState:
    """The state of a device at one moment. Empty and ``None``: it does not report it.

    Attributes:
        clocks_mhz: By domain.
        governors: What sets the clocks: ``17000000.gpu: nvhost_podgov``.
        temperatures_c: By sensor.
        power_mode: Mode of nvpmodel on a Jetson; performance state and power limit of a desktop GPU.
        throttling: What holds the clocks down now.
        throttle_events: How often clocks were held down since the start of the system, by cause.
    """

    clocks_mhz: list[Reading] = field(default_factory=list)
    governors: list[str] = field(default_factory=list)
    temperatures_c: list[Reading] = field(default_factory=list)
    power_mode: str | None = None
    throttling: list[str] = field(default_factory=list)
    throttle_events: list[Reading] = field(default_factory=list)


class PowerSensor(Protocol):
    """One rail, package or board whose power or energy can be read."""

    @property
    def name(self) -> str:
        """Its name on the device."""

    @property
    def covers(self) -> str:
        """What its power covers, in words."""

    @property
    def is_total(self) -> bool:
        """Whether it covers the whole device."""

    @property
    def quantity(self) -> Quantity:
        """``"watts"``: a reading is power; ``"joules"``: it is a counter of energy, which only grows."""

    @property
    def window_s(self) -> float | None:
        """Seconds over which a reading of power is averaged; ``None``: not reported."""

    @property
    def resolution(self) -> float:
        """The smallest difference that the last reading could show, in the unit of the quantity."""

    def read(self) -> float | None:
        """A reading; ``None``: it failed this time."""


class Reader(Protocol):
    """One source of readings. No method raises. What cannot be read is left out, and listed in ``problems``."""

    def sensors(self) -> Sequence[PowerSensor]:
        """The power sensors that give a reading now."""

    def state(self) -> DeviceState:
        """Clocks, temperatures, power mode and throttling now."""

    @property
    def problems(self) -> dict[str, str]:
        """What exists and could not be read → why."""
