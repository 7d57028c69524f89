"""A bank: N rows of state in one arena, of which any advance while the others stay as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import InputSpec
from edgemem.errors import EdgememError, InputError, NonFiniteError
from edgemem.runtimes.buffers import HELD, LAST, Buffers
from edgemem.runtimes.guard import check_new
from edgemem.runtimes.lane import Lane
from edgemem.runtimes.memory import Array
from edgemem.runtimes.on_nan import NanPolicy, OnNan, finite_items
from edgemem.runtimes.pool.windows import Windows
from edgemem.runtimes.snapshot import Parts

if TYPE_CHECKING:
    from edgemem.runtimes.session import Session

Rows = NDArray[np.int64]


class Bank:
    """Rows of state, each of one stream.

    Args:
        session: The session.
        rows: How many.
        on_nan: See :meth:`edgemem.Session.stream`.

    Attributes:
        used: Which rows hold a stream, bool ``[N]``.
        direct: Which rows can step with others: they hold no part of a step, and have not ended.
        windows: The calls that advance them.
        guest: A stream of its own, to which a row is lent for whatever is no step of many rows.

    Raises:
        InputError: The state grows, the graph computes one stream, or the policy does not fit.
    """

    def __init__(self, session: Session, rows: int, on_nan: OnNan) -> None:
        contract = session.contract
        if not contract.has_fixed_size or not contract.has_batches:
            problem = "its state grows" if contract.has_batches else "the graph computes one stream"
            raise InputError(f"a pool needs rows that advance apart: {problem}.", hint="Open streams of their own.")
        self._contract, self._guard, self._limit = contract, session.guard, contract.max_position
        engine = session.engine.for_stream(rows)
        self._lane = lane = Lane(contract, engine, rows, 1)
        self._policy = NanPolicy(on_nan, contract, lane.buffers, session.guard)
        self.used: NDArray[np.bool_] = np.zeros(rows, bool)
        self.direct: NDArray[np.bool_] = np.zeros(rows, bool)
        self._all, self._open = np.arange(rows), 0
        self._given = {spec.name: np.zeros(rows, bool) for spec in contract.held}  # which rows were given it
        self.guest = session.stream(on_nan=on_nan)
        self._ends = Buffers(contract, 1)  # for models that keep nothing there, of any number of rows
        lane.reset(None)
        self.windows = Windows(lane, rows, whole=not engine.memory.on_host or engine is not session.engine)
        lane.reset(None)

    @property
    def positions(self) -> Rows:
        """Of every row, int64 ``[N]``: a view."""
        return self._lane.positions

    @property
    def refused_when_not_finite(self) -> tuple[InputSpec, ...]:
        """The data inputs of which no item may be NaN or infinity."""
        return () if self._policy.holds or self._policy.skips else self._policy.checked

    def open(self) -> int:
        """A row at position 0, or -1 where all are used."""
        row = int(self.used.argmin())
        if self.used[row]:
            return -1
        self.used[row] = True
        self._open += 1
        self._lane.reset([row])
        for given in self._given.values():
            given[row] = False
        self.direct[row] = not self._given
        return row

    def close(self, row: int) -> None:
        """Give a row back."""
        self.used[row] = False
        self._open -= 1

    def copy(self, row: int, into: int) -> None:
        """Make one row a copy of another."""
        self._lane.arena.copy_rows(self._lane.arena, [row], into)
        self._lane.buffers.copy_rows(self._lane.buffers, [row], into)
        self._lane.write_held()
        for flags in (self.direct, *self._given.values()):
            flags[into] = flags[row]

    def lend(self, row: int) -> None:
        """Copy a row to the guest."""
        self.guest._lane.copy([(self._lane, [row])])
        self.guest._buffers.forget_held([name for name, given in self._given.items() if not given[row]])

    def parts(self, rows: Rows) -> Iterator[Parts]:
        """What snapshots of those rows hold, as they are now; the iterator needs no turn of the pool."""
        state, positions = self._lane.arena.read_rows(rows), self.positions[rows]
        buffers = {name: array[rows] for name, array in self._lane.buffers.arrays.items()}
        given = {HELD + name: given[rows] for name, given in self._given.items()}
        return (
            Parts(
                {name: array[[at]] for name, array in state.items()},
                positions[[at]],
                {name: array[[at]] for name, array in buffers.items() if name not in given or given[name][at]},
            )
            for at in range(len(rows))
        )

    def take_back(self, row: int) -> None:
        """Copy the guest to a row."""
        lane, guest = self._lane, self.guest._lane
        guest.engine.finish()  # its work is issued elsewhere, and must be done before it is copied
        lane.arena.copy_rows(guest.arena, [0], row)
        lane.engine.finish()
        lane.buffers.copy_rows(guest.buffers, [0], row)
        lane.write_held()
        for name, given in self._given.items():
            given[row] = HELD + name in guest.buffers.arrays
        self.direct[row] = not (guest.ended or guest.buffers.waits)

    def goes_alone(self, rows: Rows, items: Mapping[str, Array]) -> list[bool]:
        """Which of those ``K`` rows cannot step with others; empty where all can.

        Their data are not finite, or they have no position left: what then happens is for a stream to say.
        """
        good = [finite_items(spec, items[spec.name]).all(axis=1) for spec in self._policy.checked]
        if self._limit is not None and self.positions.max() >= self._limit:
            good.append(self.positions[rows] < self._limit)
        if all(rows.all() for rows in good):
            return []
        return [not together for together in np.all(good, axis=0).tolist()]

    def step(self, rows: Rows, items: Mapping[str, Array]) -> tuple[dict[str, Array], dict[int, EdgememError]]:
        """Advance rows by one step.

        Args:
            rows: Which, int64 ``[K]``, none twice.
            items: Of every data input, ``[K, step_items, *item_shape]``.

        Returns:
            Outputs by name, ``[K, step_items, *item_shape]``, and the errors of those that failed by their place among
            the ``K``: they are as they were.
        """
        lane, part, data, after = self._lane, self._ends, items, dict[str, Array]()
        at = self._at(rows)
        if lane.buffers.arrays:
            part = Buffers(self._contract, len(rows))
            part.copy_rows(lane.buffers, rows.tolist())
            data, after = part.graph_data(items, 1)
        for name, values in data.items():
            lane.arena.step_inputs[name][at] = values
        errors = self._compute(rows, at)
        outputs = {
            name: np.array(view[at]) if isinstance(at, slice) else view.take(at, 0)
            for name, view in lane.arena.step_outputs.items()
        }
        found, after_outputs = part.host_outputs(outputs)
        if self._guard:
            errors.update(self._not_finite(rows, found, errors))
        good: Rows | slice = slice(None)
        done = at
        if errors:
            good = np.array([index for index in range(len(rows)) if index not in errors], np.int64)
            done = rows[good]
        lane.arena.commit_rows(done, self._others(done))
        for name, values in {**after, **after_outputs}.items():
            lane.buffers.arrays[name][done] = values[good]
        if self._policy.holds:
            for spec in self._policy.checked:
                lane.buffers.arrays[LAST + spec.name][done] = items[spec.name][good, -1]
        return found, errors

    def _at(self, rows: Rows) -> Rows | slice:
        """The same rows as a slice, if they lie one behind the other: numpy copies that much faster."""
        first, count = int(rows[0]), len(rows)
        if count == 1:
            return slice(first, first + 1)
        together = self._all[first : first + count]
        return slice(first, first + count) if rows.tobytes() == together.tobytes() else rows

    def _others(self, done: Rows | slice) -> Rows | None:
        """The rows in use that are not done; ``None`` where they are more than half of all in use."""
        count = done.stop - done.start if isinstance(done, slice) else len(done)
        if 2 * count <= self._open:
            return None
        if count == self._open:
            return self._all[:0]
        others = self.used.copy()
        others[done] = False
        return others.nonzero()[0]

    def _compute(self, rows: Rows, at: Rows | slice) -> dict[int, EdgememError]:
        """Compute a step of those rows; the errors of those whose call failed, by their place."""
        errors: dict[int, EdgememError] = {}
        for window in self.windows.cover(at):
            first, size = window
            try:
                self._lane.run(self.windows.call(window))
            except EdgememError as error:
                inside = np.flatnonzero((rows >= first) & (rows < first + size))
                errors.update(dict.fromkeys(inside.tolist(), error))
        self._lane.arena.fetch_step()
        return errors

    def _not_finite(
        self, rows: Rows, outputs: Mapping[str, Array], failed: Mapping[int, EdgememError]
    ) -> dict[int, EdgememError]:
        """The guard's errors, by the rows' places."""
        states = [(spec, value) for spec, value in self._lane.new_states(1)]
        errors: dict[int, EdgememError] = {}
        for index, row in enumerate(rows.tolist()):
            if index in failed:
                continue
            own = {name: values[index : index + 1] for name, values in outputs.items()}
            new = ((spec, value[row : row + 1]) for spec, value in states)
            try:
                check_new(self._contract, 1, self.positions[row : row + 1], own, new)
            except NonFiniteError as error:
                errors[index] = error
        return errors
