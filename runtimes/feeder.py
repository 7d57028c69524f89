"""Advancing a lane by any number of items: steps are cut into calls, and what fills no step is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edgemem.contract import Contract
from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes.buffers import HELD
from edgemem.runtimes.guard import check_data, check_new
from edgemem.runtimes.lane import Lane
from edgemem.runtimes.memory import Array
from edgemem.runtimes.results import Result, Results


class Feeder:
    """Feeds one lane.

    Args:
        contract: The contract.
        lane: The lane.
        batch: Streams that advance together.
        guard: Whether every value must be finite.
        pieces: Cuts a number of steps into calls that the engine takes.
    """

    def __init__(
        self, contract: Contract, lane: Lane, batch: int, guard: bool, pieces: Callable[[int], Iterator[int]]
    ) -> None:
        self._contract = contract
        self._lane = lane
        self._buffers = lane.buffers
        self._batch = batch
        self._guard = guard
        self._pieces = pieces
        self._limit = contract.max_position

    def feed(self, items: dict[str, Array], outputs: str) -> Result:
        """Advance by the steps that ``items`` and what was left over fill.

        Args:
            items: Of every data input, ``[B, N, *item_shape]``.
            outputs: ``"last"``, ``"all"`` or ``"none"``.

        Raises:
            InputError: An input runs ahead of another, or the model has no positions left; the stream is as it was.
            NonFiniteError: The guard is on and saw NaN or infinity; the stream is as it was.
        """
        data, buffers, lane = self._contract.data, self._buffers, self._lane
        if self._guard:
            check_data(self._contract, items, self._lane.positions)
        for spec in data:
            if (left := buffers.left_over(spec)).shape[1]:
                items[spec.name] = np.concatenate([left, items[spec.name]], axis=1)
        steps = min(items[spec.name].shape[1] // spec.step_items for spec in data)
        self._refuse_overflow(items, steps)
        self.check_room(steps)
        lengths = list(self._pieces(steps))
        before = (
            (lane.arena.read_state(), lane.positions.copy(), buffers.copy())
            if self._guard and len(lengths) > 1
            else None
        )
        results = Results(self._contract, self._batch, steps, outputs)
        done = 0
        try:
            for length in lengths:
                results.add(self._piece(items, done, length, results.every))
                done += length
        except NonFiniteError:
            if before is not None:
                lane.install(*before[:2])
                buffers.arrays = before[2]
            raise
        for spec in data:
            buffers.keep(spec, items[spec.name][:, steps * spec.step_items :])
        return results.result()

    def _piece(self, items: Mapping[str, Array], start: int, time: int, every: bool) -> dict[str, Array]:
        """Compute ``time`` steps from step ``start`` of ``items`` on, and make them the state; outputs by name."""
        part = {}
        for spec in self._contract.data:
            part[spec.name] = items[spec.name][:, start * spec.step_items : (start + time) * spec.step_items]
        data, after_data = self._buffers.graph_data(part, time)
        computed = self._lane.compute(time, data, every)
        outputs, after_outputs = self._buffers.host_outputs(computed)
        if self._guard:
            self.check_new(time, outputs)
        self._lane.commit(time)
        self._buffers.commit(after_data, after_outputs)
        if start == 0:
            for spec in self._contract.data:
                self._buffers.keep(spec, items[spec.name][:, :0])
        return outputs

    def check_new(self, time: int, outputs: Mapping[str, Array]) -> None:
        """Reject a computation of ``time`` steps that is not finite; see :func:`~edgemem.runtimes.guard.check_new`."""
        check_new(self._contract, time, self._lane.positions, outputs, self._lane.new_states(time))

    def check_room(self, time: int) -> None:
        """Refuse ``time`` steps that would pass the model's last position."""
        limit = self._limit
        if limit is not None and (last := int(self._lane.positions.max())) + time > limit:
            raise InputError(
                f"the stream is at position {last}: {time} more would pass the {limit} that this model was exported "
                "for.",
                hint="Reset the stream, or export with a larger --max-length, or with --memory to stream for ever.",
            )

    def refuse_unready(self) -> None:
        """Refuse a stream that has ended, or that lacks an input which holds for all of it."""
        if self._lane.ended:
            raise InputError("the stream has ended.", hint="Call reset() to start again, or open another stream.")
        missing = [spec.name for spec in self._contract.held if HELD + spec.name not in self._buffers.arrays]
        if missing:
            raise InputError(
                f"the input {', '.join(missing)} holds for the whole stream and was never given.",
                hint=f"Open it with session.stream(held={{{missing[0]!r}: ...}}), or call stream.hold().",
            )

    def _refuse_overflow(self, items: Mapping[str, Array], steps: int) -> None:
        """Refuse inputs of which one runs ahead of another by more than a step: nothing could hold them."""
        for spec in self._contract.data:
            if (left := items[spec.name].shape[1] - steps * spec.step_items) >= spec.step_items:
                takes = ", ".join(f"{each.step_items} of {each.name}" for each in self._contract.data)
                raise InputError(
                    f"{spec.name} runs ahead of the other inputs by {left} items; a step takes {takes}.",
                    hint="Feed as many steps of every input.",
                )
