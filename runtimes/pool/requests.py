"""What waits in a pool: steps, which many streams make together, and jobs, which one stream does in slices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgemem.contract import Contract
from edgemem.dtypes import numpy_dtype
from edgemem.runtimes.memory import Array

Job = Callable[[], Iterator[None]]
"""What one stream does in slices: between two of them, others step. It returns what its future gets."""


@dataclass(frozen=True)
class Outcome:
    """What a step of several streams gave.

    Attributes:
        outputs: ``[K, *output.shape]``, or ``[K, N, *output.shape]`` where a step gives several; by name where the
            model has several outputs. The caller's memory. Rows that failed hold nothing of meaning.
        errors: Why a row failed, by its place among the ``K``; its stream is as it was.
    """

    outputs: Any
    errors: Mapping[int, Exception]


def outcome(contract: Contract, made: Mapping[str, Array], errors: Mapping[int, Exception]) -> Outcome:
    """What a step gave, from its outputs ``[K, step_items, *item_shape]`` by name."""
    outputs = {
        spec.name: made[spec.name][:, 0] if spec.step_items == 1 else made[spec.name] for spec in contract.output_specs
    }
    return Outcome(outputs if len(outputs) > 1 else outputs[contract.output.name], errors)


class Ticket:
    """The steps of one call, and the future that gets their outcome.

    Args:
        items: The data of every row by name, ``[K, step_items, *item_shape]``.
        rows: ``K``.

    Attributes:
        items: The same.
    """

    def __init__(self, items: Mapping[str, Array], rows: int) -> None:
        self.future: Future[Outcome] = Future()
        self.items = items
        self._rows = self._left = rows
        self._outputs: Mapping[str, Array] = {}
        self._errors: dict[int, Exception] = {}

    def put(self, first: int, outputs: Mapping[str, Array], errors: Mapping[int, Exception]) -> bool:
        """Take what some rows gave; whether all rows are done.

        Args:
            first: The first of the rows.
            outputs: ``[k, step_items, *item_shape]`` by name, the taker's memory.
            errors: Why rows failed, by their place among the ``k``.
        """
        rows = len(next(iter(outputs.values())))
        if rows == self._rows:
            self._outputs = outputs
        else:
            if not self._outputs:
                self._outputs = {n: np.zeros((self._rows, *made.shape[1:]), made.dtype) for n, made in outputs.items()}
            for name, made in outputs.items():
                self._outputs[name][first : first + rows] = made
        if errors:
            self._errors.update((first + place, error) for place, error in errors.items())
        self._left -= rows
        return self._left == 0

    def finish(self, contract: Contract) -> None:
        """Hand over the outcome."""
        settle(self.future, outcome(contract, self._outputs, self._errors))


class Step:
    """One step of one stream: a row of a ticket.

    Args:
        ticket: The ticket.
        index: The row.
    """

    __slots__ = ("index", "ticket")

    def __init__(self, ticket: Ticket, index: int) -> None:
        self.ticket, self.index = ticket, index

    @property
    def items(self) -> dict[str, Array]:
        """Its data by name, ``[1, step_items, *item_shape]``."""
        return {name: array[self.index : self.index + 1] for name, array in self.ticket.items.items()}


class Run(NamedTuple):
    """Steps of one ticket that lie one behind the other."""

    ticket: Ticket
    first: int
    rows: int

    def give(self, outputs: Mapping[str, Array], errors: Mapping[int, Exception], contract: Contract) -> None:
        """Hand over what its steps gave; see :meth:`Ticket.put`."""
        if self.ticket.put(self.first, outputs, errors):
            self.ticket.finish(contract)


def runs_of(steps: Sequence[Step]) -> list[Run]:
    """Those steps in runs as long as can be."""
    runs: list[Run] = []
    start, ticket, following = 0, steps[0].ticket, steps[0].index
    for place, step in enumerate(steps):
        if step.ticket is not ticket or step.index != following:
            runs.append(Run(ticket, following - (place - start), place - start))
            start, ticket, following = place, step.ticket, step.index
        following += 1
    runs.append(Run(ticket, following - (len(steps) - start), len(steps) - start))
    return runs


def gathered(runs: Sequence[Run], name: str) -> Array:
    """The data of those steps, ``[K, step_items, *item_shape]``."""
    parts = [run.ticket.items[name][run.first : run.first + run.rows] for run in runs]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class Work:
    """A job of one stream that has begun or waits to begin.

    Args:
        job: What it does.
        future: Who waits for it.
    """

    def __init__(self, job: Job, future: Future[Any]) -> None:
        self.future = future
        self._job = job
        self._slices: Iterator[None] | None = None

    def slice(self) -> bool:
        """Do a part of it; whether it is done."""
        try:
            if self._slices is None:
                self._slices = self._job()
            next(self._slices)
        except StopIteration as end:
            settle(self.future, end.value)
        except Exception as error:
            fail(self.future, error)
        else:
            return False
        return True


Request = Step | Work


def settle(future: Future[Any], result: Any) -> None:
    """Give a future its result, unless nobody waits any more."""
    try:  # noqa: SIM105 (every step pays for it)
        future.set_result(result)
    except InvalidStateError:
        pass


def fail(future: Future[Any], error: Exception) -> None:
    """Give a future an error, unless nobody waits any more."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(error)


def blank(contract: Contract) -> dict[str, Array]:
    """Outputs of one step that was not made, ``[1, step_items, *item_shape]`` by name."""
    return {
        spec.name: np.zeros((1, spec.step_items, *spec.item_shape), numpy_dtype(spec.host_dtype))
        for spec in contract.output_specs
    }


def refuse(requests: Sequence[Request], contract: Contract, error: Exception) -> None:
    """Give everyone who waits for those requests an error."""
    for request in requests:
        if isinstance(request, Work):
            fail(request.future, error)
        elif request.ticket.put(request.index, blank(contract), {0: error}):
            request.ticket.finish(contract)
