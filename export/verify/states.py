"""The states of a bundle against those of torch's own step: a state may be wrong long before an output shows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from edgemem.contract import Contract
from edgemem.dtypes import decode_bfloat16
from edgemem.errors import VerificationError
from edgemem.export.sources import Source
from edgemem.export.verify.expected import Expected, cut
from edgemem.export.verify.sequences import Sequences, by_step
from edgemem.export.verify.widened import in_float64
from edgemem.measure import ROUNDINGS, Array, Measure
from edgemem.runtimes import Session
from edgemem.streaming.narrow import widen

Stored = Callable[[], AbstractContextManager[tuple[Source, nn.Module]]]
"""Gives, for the time of a block, the source with the bundle's weights and the module that holds the same states."""

_SINGLE = 4
"""Steps at the end that are made one by one."""


@dataclass(frozen=True)
class Point:
    """A stream of torch's own steps at one moment.

    Attributes:
        done: Steps so far.
        states: Every state by name, ``[B, 1, elements]``.
        outputs: Outputs of the last call by name, ``[B, T, items, *item_shape]``.
    """

    done: int
    states: dict[str, Array]
    outputs: dict[str, Array]


@dataclass(frozen=True)
class TorchStates:
    """Torch's own steps: in calls as long as they go, and the last ones one by one.

    Attributes:
        contract: The contract of the bundle, with the dtypes of the module's states.
        sizes: Steps of each call.
        points: The stream before the single steps, and after each.
    """

    contract: Contract
    sizes: list[int]
    points: list[Point]

    @classmethod
    def of(cls, contract: Contract, module: nn.Module, given: Sequences, longest: int) -> TorchStates:
        """Stream the module.

        Args:
            contract: The bundle's.
            module: Holds the same states.
            given: The data.
            longest: Most steps of one call.
        """
        contract = own_contract(contract, module)
        many = max(given.steps - _SINGLE, 0)
        sizes = [*cut(many, lambda: longest), *[1] * (given.steps - many)]
        return cls(contract, sizes, [*_torch_points(contract, module, given, sizes, first=many)])

    def agree(self, expected: Expected, measure: Measure) -> bool:
        """Whether torch's single steps give what its full-sequence pass gives."""
        for point in self.points[1:]:
            here = expected.within(point.done - 1, 1)
            for name, value in point.outputs.items():
                if here.stop > here.start and not (measure.error(name, value, here) <= measure.tolerance).all():
                    return False
        return True

    def compare(self, session: Session, given: Sequences, stored: Stored, tolerance: float, dtype: str) -> float:
        """Stream the bundle in the same calls; the largest error of a state.

        Raises:
            VerificationError: A state differs.
        """
        stream, worst, done = session.stream(given.batch, held=given.held), 0.0, 0
        wanted = {point.done: point for point in self.points}
        for size in self.sizes:
            stream.feed(given.between(done, done + size), outputs="none")
            done += size
            if done in wanted:
                got = flat_states(session.contract, stream.state())
                worst = max(worst, self._error(wanted[done], got, given, stored, tolerance, dtype))
        return worst

    def _error(
        self, point: Point, got: Mapping[str, Array], given: Sequences, stored: Stored, tolerance: float, dtype: str
    ) -> float:
        def precise() -> dict[str, Array] | None:
            with stored() as (_, module):
                points = _torch_points(self.contract, module, given, self.sizes, first=point.done)
                return in_float64(module, lambda: next(points).states)

        measure, worst = Measure(point.states, tolerance, precise, dtype), 0.0
        for name, value in got.items():
            error = _state_error(measure, name, value)
            if not error <= tolerance:
                raise VerificationError(
                    f"the state {name!r} after {point.done} steps differs by {error:.2e} of its spread from torch's "
                    f"own step (tolerance {tolerance:.0e}), although the outputs so far agree."
                )
            worst = max(worst, error)
        return worst


def _state_error(measure: Measure, name: str, got: Array) -> float:
    """The error of a state, ``[B, 1, elements]``.

    A state that torch leaves constant may hold what rounding of the largest state leaves: it is the carry of a
    compensated sum, while torch rounded nothing off.
    """
    wanted = measure.wanted[name]
    if wanted.dtype.kind == "f" and np.ptp(wanted) == 0:
        real = (value for value in measure.wanted.values() if value.dtype.kind == "f")
        left = ROUNDINGS * 2.0**-24 * max(np.abs(value).max(initial=0.0) for value in real)
        if np.abs(got.astype(np.float64) - wanted).max(initial=0.0) <= left:
            return 0.0
    return float(measure.error(name, got)[0])


@dataclass(frozen=True)
class Difference:
    """Where a stream of a bundle first differs from torch's own steps.

    Attributes:
        first: The state, when and by how much; ``None`` if every state agrees.
        forms_disagree: Whether torch's own steps differ from its full-sequence pass.
    """

    first: str | None
    forms_disagree: bool


def find_difference(
    session: Session,
    stored: Stored,
    given: Sequences,
    sizes: list[int],
    last: int,
    expected: Expected,
    measure: Measure,
) -> Difference:
    """Stream a bundle and torch's own steps together up to step ``last``, and look at the states after each call."""
    stream = session.stream(given.batch, held=given.held)
    done, first, disagree = 0, None, False
    with stored() as (_, module):
        for point in _torch_points(own_contract(session.contract, module), module, given, sizes):
            stream.feed(given.between(done, point.done), outputs="none")
            states = Measure(point.states, measure.tolerance, dict)
            for name, value in flat_states(session.contract, stream.state()).items() if first is None else ():
                error = _state_error(states, name, value)
                if not error <= measure.tolerance:
                    first = f"{name} after step {point.done - 1} (by {error:.2e})"
                    break
            here = expected.within(done, point.done - done)
            for name, value in point.outputs.items():
                compared = value[:, expected.steps[here] - done]
                disagree = disagree or not (measure.error(name, compared, here) <= measure.tolerance).all()
            done = point.done
            if done > last:
                break
    return Difference(first, disagree)


def own_contract(contract: Contract, module: nn.Module) -> Contract:
    """A bundle's contract with the states as the module has them: a bundle may keep some in fewer bits."""
    return replace(contract, states=module.contract().states)  # type: ignore[operator]


def flat_states(contract: Contract, states: Mapping[str, Array]) -> dict[str, Array]:
    """Every state as one channel, ``[B, 1, elements]``; rings of integers as the numbers that they stand for."""
    found = {}
    for name, value in widen(contract, states).items():
        value = decode_bfloat16(value) if contract[name].dtype == "bfloat16" else value
        found[name] = value.reshape(len(value), 1, -1)
    return found


def _torch_points(
    contract: Contract, module: nn.Module, given: Sequences, sizes: list[int], first: int = 0
) -> Iterator[Point]:
    """Stream the module; a point after each call from step ``first`` on."""
    from edgemem.runtimes.torch_reference import TorchSession

    stream, done = TorchSession(contract, module).stream(given.batch, held=given.held), 0
    for size in sizes:
        part = given.between(done, done + size)
        done += size
        if done < first:
            stream.feed(part, outputs="none")
            continue
        outputs = by_step(contract, stream.feed(part, outputs="all"), size)
        yield Point(done, flat_states(contract, stream.state()), {name: x.copy() for name, x in outputs.items()})
