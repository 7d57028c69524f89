"""How many items a step takes and gives, found from calls of different lengths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from edgemem.contract import InputSpec
from edgemem.errors import ProtocolError
from edgemem.export.discovery.probe import Probe

_LONGEST = 64
"""Up to this length every step is tried; beyond it, those that divide the example's length."""
_SHOWN = 4


@dataclass(frozen=True)
class Rate:
    """What one step consumes and produces.

    Attributes:
        inputs: The inputs with what a step takes.
        gives: Items of each output.
    """

    inputs: tuple[InputSpec, ...]
    gives: dict[str, int]


class Rates:
    """The steps that a module may have.

    Args:
        probe: The module; its inputs' ``takes`` are the shortest possible step.
        state: The state of two streams before the calls; ``None`` where the module makes it itself.
        units: Length of the example, in shortest possible steps.
    """

    def __init__(self, probe: Probe, state: Any, units: int) -> None:
        self._probe = probe
        self._state = state
        self._units = units
        self._counts: dict[int, dict[str, int] | None] = {}

    def found(self) -> Iterator[Rate]:
        """The shortest step for which every call gives a whole number of outputs, then longer ones.

        The longer ones are for modules that compute in blocks: they give as many outputs for any length, but the right
        ones only for whole blocks.

        Raises:
            ProtocolError: There is no such step.
        """
        if self._probe.single:
            yield self._rate(self._units, self._steady(self._units, ()))
            return
        beyond = [length for length in range(_LONGEST + 1, self._units + 1) if self._units % length == 0]
        shortest = next((length for length in (*range(1, _LONGEST + 1), *beyond) if self._fits(length)), None)
        if shortest is None:
            raise self._none()
        for length in dict.fromkeys((shortest, 2 * shortest, 4 * shortest, 8 * shortest, self._units)):
            if self._fits(length):
                yield self._rate(length, self._count(length) or {})

    def _rate(self, length: int, gives: dict[str, int] | None) -> Rate:
        if gives is None:
            raise self._none()
        inputs = (
            replace(spec, takes=spec.takes * length) if spec.role == "data" else spec for spec in self._probe.specs
        )
        return Rate(tuple(inputs), gives)

    def _fits(self, length: int) -> bool:
        # A rate of one for n items, rounded up, looks like one for n - 1 items until n steps of that are tried.
        return self._steady(length, (2, 3, length + 1)) is not None

    def _steady(self, length: int, multiples: tuple[int, ...]) -> dict[str, int] | None:
        """What a step of this length gives, if it gives something and so many steps give as many times that."""
        gives = self._count(length)
        if gives is None or 0 in gives.values():
            return None
        for times in multiples:
            if self._count(times * length) != {name: times * count for name, count in gives.items()}:
                return None
        return gives

    def _count(self, length: int) -> dict[str, int] | None:
        """How many items of each output a call of this length gives; ``None`` where the call fails."""
        if length not in self._counts:
            try:
                outputs, _ = self._probe.call(self._probe.data(2, length), self._state)
                self._counts[length] = {name: value.shape[1] for name, value in outputs.items()}
            except ProtocolError:
                self._counts[length] = None
        return self._counts[length]

    def _none(self) -> ProtocolError:
        """The error where no length is a step: what the calls gave, or the error of all of them."""
        known = [(length, counts) for length, counts in sorted(self._counts.items()) if counts is not None]
        if not known:
            try:
                self._probe.call(self._probe.data(2, self._units), self._state)
            except ProtocolError as error:
                return error
        shown = "; ".join(f"{self._fed(length)} gave {_listed(counts)}" for length, counts in known[:_SHOWN])
        return ProtocolError(
            f"{self._probe.name}.forward does not give outputs at a fixed rate. From the initial state, {shown}.",
            hint="Every step must take the same number of items and give the same number of outputs, at least one. "
            "Keep items that are left over in the state. If the module takes one step a call, set max_chunk=1: the "
            "example is then one step.",
        )

    def _fed(self, length: int) -> str:
        return _listed({spec.name: spec.takes * length for spec in self._probe.data_specs})


def _listed(counts: dict[str, int]) -> str:
    return " and ".join(f"{count} of {name}" for name, count in counts.items())
