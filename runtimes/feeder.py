"""Advancing a lane by any number of items: steps are cut into calls, and what fills no step is kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract
from edgemem.dtypes import numpy_dtype
from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes.buffers import HELD
from edgemem.runtimes.guard import check_new
from edgemem.runtimes.inputs import held_array, named, step_array
from edgemem.runtimes.lane import Lane
from edgemem.runtimes.memory import Array
from edgemem.runtimes.on_nan import NanPolicy, finite_items, not_finite
from edgemem.runtimes.results import Result, Results
from edgemem.runtimes.step_ends import StepEnds
from edgemem.wording import counted


class Feeder:
    """Feeds one lane.

    Args:
        contract: The contract.
        lane: The lane.
        batch: Streams that advance together.
        guard: Whether every value must be finite.
        pieces: Cuts a number of steps into calls that the engine takes.
        policy: What happens to data that are not finite.
        ends: The ends of a single step, where they can be computed in place.

    Attributes:
        skipped: Which items of the last feed were skipped, bool ``[B, N]``; ``None`` if none were.
    """

    def __init__(
        self,
        contract: Contract,
        lane: Lane,
        batch: int,
        guard: bool,
        pieces: Callable[[int], Iterator[int]],
        policy: NanPolicy,
        ends: StepEnds | None,
    ) -> None:
        self._contract = contract
        self._lane = lane
        self._buffers = lane.buffers
        self._batch = batch
        self._guard = guard
        self._pieces = pieces
        self._policy = policy
        self._ends = ends
        self.skipped: NDArray[np.bool_] | None = None
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
        self.skipped = skipped = self._policy.admit(items, self._lane.positions)
        if skipped is None:
            result = self._advance(dict(items), outputs)
        else:
            with self._all_or_nothing(True):
                result = self._around(items, skipped, outputs)
        self._policy.remember(items)
        return result

    def step(self, x: Any) -> Result:
        """Advance by exactly one step, of what was passed to :meth:`edgemem.Stream.step`."""
        self.refuse_unready(whole_steps=True)
        given = named(self._contract.data, x, "step")
        return self.feed({s.name: step_array(s, given[s.name], self._batch) for s in self._contract.data}, "last")

    def fill_up(self, pad: float) -> Result:
        """Complete a step with ``pad``, and give every output that is still due."""
        left = {spec.name: self._buffers.left_over(spec) for spec in self._contract.data}
        steps = self._buffers.delay_steps + any(array.shape[1] for array in left.values())
        fill = {}
        for spec in self._contract.data:
            missing = max(0, steps * spec.step_items - left[spec.name].shape[1])
            fill[spec.name] = np.full((self._batch, missing, *spec.item_shape), pad, left[spec.name].dtype)
        return self.feed(fill, "all")

    def hold(self, held: Mapping[str, Any], *, finite: bool) -> None:
        """Take inputs that hold for the whole stream; see :meth:`edgemem.Stream.hold`."""
        specs = {spec.name: spec for spec in self._contract.held}
        if unknown := sorted(set(held) - set(specs)):
            raise InputError(f"no input {', '.join(unknown)} is held: there are {', '.join(specs) or 'none'}.")
        values = {name: held_array(specs[name], value, self._batch) for name, value in held.items()}
        for name, value in values.items():
            rows = value[:, np.newaxis]
            if finite and not finite_items(specs[name], rows).all():
                raise not_finite(specs[name], rows, self._lane.positions)
        for name, value in values.items():
            self._buffers.arrays[HELD + name] = value.copy()
            self._lane.arena.hold(specs[name], value)
        self._buffers.settle()

    @contextlib.contextmanager
    def _all_or_nothing(self, several: bool) -> Iterator[None]:
        """Take several calls back where the guard stops one of them."""
        lane = self._lane
        before = (lane.arena.read_state(), lane.positions.copy()) if self._guard and several else None
        kept = self._buffers.copy() if before else {}
        try:
            yield
        except NonFiniteError:
            if before is not None:
                lane.install(*before)
                self._buffers.load(kept)
            raise

    def _advance(self, items: dict[str, Array], outputs: str) -> Result:
        """Advance every row by the steps that ``items`` and what was left over fill."""
        data, buffers = self._contract.data, self._buffers
        for spec in data:
            if (left := buffers.left_over(spec)).shape[1]:
                items[spec.name] = np.concatenate([left, items[spec.name]], axis=1)
        steps = min(items[spec.name].shape[1] // spec.step_items for spec in data)
        self._refuse_overflow(items, steps)
        self.check_room(steps)
        results = Results(self._contract, self._batch, steps, outputs)
        done = 0
        lengths = list(self._pieces(steps))
        with self._all_or_nothing(len(lengths) > 1):
            for length in lengths:
                results.add(self._piece(items, done, length, results.every))
                done += length
        for spec in data:
            buffers.keep(spec, items[spec.name][:, steps * spec.step_items :])
        return results.result()

    def _around(self, items: dict[str, Array], skipped: NDArray[np.bool_], outputs: str) -> Result:
        """Advance a plain model by ``items`` ``[B, N, ...]``, each row without those that are ``skipped`` ``[B, N]``.

        The outputs of what is skipped are NaN, or 0 where they are integers.
        """
        if self._lane.arena.growing and (skipped != skipped[:1]).any():
            raise InputError(
                "a row cannot be skipped in one stream of a batch: a growing state needs all at one position.",
                hint="Run the streams apart, or choose another policy for NaN.",
            )
        self.check_room(int((~skipped).sum(axis=1).max()))
        (name, given), spec = next(iter(items.items())), self._contract.output
        results = Results(self._contract, self._batch, skipped.shape[1], outputs)
        wanted = "all" if results.every else outputs
        blank = np.nan if "float" in spec.host_dtype else 0
        # Runs of steps with the same rows to skip: most have none.
        ends = [*(np.flatnonzero((skipped[:, 1:] != skipped[:, :-1]).any(axis=0)) + 1), skipped.shape[1]]
        for start, end in zip([0, *ends], ends, strict=False):
            rows = np.flatnonzero(skipped[:, start])
            part = given[:, start:end]
            made = np.full((self._batch, end - start, *spec.item_shape), blank, numpy_dtype(spec.host_dtype))
            if len(rows) < self._batch:
                if len(rows):
                    part = part.copy()
                    part[rows] = part[np.flatnonzero(~skipped[:, start])[0]]
                with self._lane.keeping(rows.tolist()) if len(rows) else contextlib.nullcontext():
                    computed = self._advance({name: part}, wanted)
                if computed is not None:
                    made[:, -1 if wanted == "last" else slice(None)] = computed
                made[rows] = blank
            results.add({spec.name: made})
        return results.result()

    def _piece(self, items: Mapping[str, Array], start: int, time: int, every: bool) -> dict[str, Array]:
        """Compute ``time`` steps from step ``start`` of ``items`` on, and make them the state; outputs by name."""
        part = {}
        for spec in self._contract.data:
            part[spec.name] = items[spec.name][:, start * spec.step_items : (start + time) * spec.step_items]
        if time == 1 and self._ends is not None:
            self._ends.write(part)
            self._lane.compute_step()
            self._lane.commit(1)
            outputs = self._ends.outputs()
        else:
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

    def refuse_unready(self, *, whole_steps: bool = False) -> None:
        """Refuse a stream that has ended, or lacks an input which holds for all of it, or has begun a step."""
        if self._lane.ended:
            raise InputError("the stream has ended.", hint="Call reset() to start again, or open another stream.")
        missing = [spec.name for spec in self._contract.held if HELD + spec.name not in self._buffers.arrays]
        if missing:
            raise InputError(
                f"the input {', '.join(missing)} holds for the whole stream and was never given.",
                hint=f"Open it with session.stream(held={{{missing[0]!r}: ...}}), or call stream.hold().",
            )

        for spec in self._contract.data if whole_steps else ():
            if left := self._buffers.left_over(spec).shape[1]:
                raise InputError(
                    f"step takes exactly {counted(spec.step_items, 'item')} of {spec.name!r}; "
                    f"the stream holds {left} already.",
                    hint="Go on with feed(), or end the stream with finish().",
                )

    def _refuse_overflow(self, items: Mapping[str, Array], steps: int) -> None:
        """Refuse inputs of which one runs ahead of another by more than a step: nothing could hold them."""
        for spec in self._contract.data:
            if (left := items[spec.name].shape[1] - steps * spec.step_items) >= spec.step_items:
                takes = ", ".join(f"{each.step_items} of {each.name}" for each in self._contract.data)
                raise InputError(
                    f"{spec.name} runs ahead of the other inputs by {counted(left, 'item')}; a step takes {takes}.",
                    hint="Feed as many steps of every input.",
                )
