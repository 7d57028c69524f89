"""Streams: positions, state and what is computed from them, the same for every engine.

A stream computes first and commits afterwards. Until the commit the state is as it was, so a failing call changes
nothing; the commit writes the new entries into their rings and swaps the replaced states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgemem.dtypes import decode_bfloat16
from edgemem.errors import InputError, SnapshotError
from edgemem.files import write_atomic
from edgemem.runtimes.engine import Engine
from edgemem.runtimes.exclusive import Exclusive, exclusive, in_use
from edgemem.runtimes.feeder import Feeder
from edgemem.runtimes.guard import Rows, checked_positions, checked_rows, checked_states
from edgemem.runtimes.inputs import chunk_array, named, step_writer, token_error
from edgemem.runtimes.lane import Lane
from edgemem.runtimes.memory import Array, Memory
from edgemem.runtimes.on_nan import NanPolicy, OnNan, step_check
from edgemem.runtimes.snapshot import Parts, pack, read
from edgemem.runtimes.step_ends import step_ends
from edgemem.runtimes.top import Top, largest

if TYPE_CHECKING:
    from edgemem.runtimes.session import Session

Outputs = Literal["last", "all", "none"]


class Stream(Exclusive):
    """``B`` streams that advance together, each at its own position. A call while another thread is in one is refused.

    Where the model has several data inputs, ``x`` is a mapping by name; where it has several outputs, so is a result.

    Attributes:
        batch: ``B``.
        on_nan: What happens to data that are not finite; see :meth:`edgemem.Session.stream`.
    """

    def __init__(self, session: Session, engine: Engine, batch: int, on_nan: OnNan = "stop") -> None:
        super().__init__()
        self.batch, self.on_nan = batch, on_nan
        self._session, self._guard = session, session.guard
        self._contract = contract = session.contract
        self._lane = lane = Lane(contract, engine, batch, session.max_time)
        self._buffers = lane.buffers
        policy = NanPolicy(on_nan, contract, lane.buffers, session.guard)
        self._ends = ends = step_ends(contract, lane, policy, session.guard)
        self._feeder = Feeder(contract, lane, batch, session.guard, session.pieces, policy, ends)
        self._positions = lane.positions
        self._step_input = lane.arena.step_inputs[contract.input.name]  # [B, takes, *input.shape]
        self._step_output = lane.arena.step_outputs[contract.output.name][:, 0]  # [B, *output.shape]
        self._notes = policy.holds or policy.skips
        self._keep_good = policy.step_keeper(self._step_input)
        self._is_bad = step_check(contract.input, self._step_input) if policy.checked else None
        self._write = step_writer(contract.input, self._step_input, batch)  # where the contract is plain
        self._vocab_size = contract.input.vocab_size or 0
        self._limit, self._plain = contract.max_position, contract.is_plain
        self._takes_int = batch == 1 and self._plain and contract.input.is_tokens and contract.input.shape == ()
        self._decodes = contract.output.dtype == "bfloat16"
        self._direct = (
            (self._plain or ends is not None) and self.memory.on_host and not self._decodes and not lane.arena.growing
        )

    def __repr__(self) -> str:
        where = self.position if self.batch == 1 else self._positions.tolist()
        return f"Stream(batch={self.batch}, position={where}, {self._session!r})"

    @property
    def positions(self) -> NDArray[np.int64]:
        """Steps seen by each stream since its start, int64 ``[B]`` (a copy)."""
        return self._positions.copy()

    @property
    def position(self) -> int:
        """Steps seen by the first stream."""
        return int(self._positions[0])

    @property
    def skipped(self) -> NDArray[np.bool_] | None:
        """Which rows of the last step or feed were skipped, bool ``[B, N]``; ``None`` if none were."""
        return self._feeder.skipped

    @property
    def memory(self) -> Memory:
        """Where its state lies, and through which everything is issued on a device."""
        return self._lane.arena.memory

    def step(self, x: Any) -> Any:
        """Advance by one step.

        Args:
            x: Token ids: an ``int``, ``[B]`` or ``[B, 1]``; or features: ``[F]``, ``[B, F]`` or ``[B, 1, F]``. Where a
                step takes ``N`` items: ``[N, ...]`` or ``[B, N, ...]``, exactly so many.

        Returns:
            The output ``[B, *output.shape]``, or ``[B, N, *output.shape]`` where a step gives several: a read-only
            view that holds until the stream's next call.

        Raises:
            InputError: Wrong dtype, shape or range; a held input was never given; or the stream has ended.
            NonFiniteError: ``x``, or anything that the guard checks, holds NaN or infinity; the stream is as it was.
            EdgememError: Another thread is in a call of this stream.
        """
        if not self._acquire(False):
            raise in_use(self)
        try:
            if not self._plain or self._lane.ended:
                return self._step_of_items(x)
            self._take(x)
            return self._taken_step()
        finally:
            self._release()

    @exclusive
    def step_top(self, x: Any, k: int = 1) -> Top:
        """Advance by one step and give the ``k`` largest outputs alone.

        An engine that picks them itself (TensorRT, built with ``--top-k``) copies no more than these to the host; for
        every other one they are picked from the whole output.

        Args:
            x: As in :meth:`step`.
            k: 1 to ``V``.

        Returns:
            Their values float32 ``[B, k]``, in descending order, and their indices int64 ``[B, k]``. Of equal values
            the lower index comes first, and NaN before all; where the engine picks neither is certain.

        Raises:
            InputError: As in :meth:`step`; or the model's output is not a row of ``V`` values, or ``k`` is out of
                range.
            NonFiniteError: As in :meth:`step`.
        """
        output = self._contract.output
        if len(output.shape) != 1 or not self._plain or not isinstance(k, int) or not 1 <= k <= output.shape[0]:
            raise InputError(f"step_top with k={k!r} of {output.name} {list(output.shape)}: it takes 1 to V of [V].")
        if self._guard or self._lane.ended or k > self._lane.engine.picks:
            return largest(self.step(x), k)
        self._take(x)
        if self._is_bad is not None and (self._notes or self._is_bad()):
            return largest(self._taken_step(), k)
        lane = self._lane
        lane.run(lane.calls[lane.arena.side])
        top = lane.engine.top(k)
        lane.commit(1)
        return top

    @exclusive
    def feed(self, x: Any, outputs: Outputs = "last") -> Any:
        """Advance by any number of items, in chunks as long as the model takes.

        Items that do not fill a step are kept for the next call. Where a chunk fails for a reason other than the
        guard's, the stream stands behind the last good chunk.

        Args:
            x: Token ids ``[N]`` or ``[B, N]``; or features ``[N, F]`` or ``[B, N, F]``.
            outputs: Which outputs to return: of the last step, of all, or of none.

        Returns:
            For ``"last"`` as :meth:`step`, or ``None`` where no step was complete; for ``"all"``
            ``[B, M, *output.shape]``, ``M`` being 0 or more; memory that is the caller's.

        Raises:
            InputError: Wrong dtype, shape or range, or more than the model has positions for; the stream is as it was.
            NonFiniteError: ``x``, or anything that the guard checks, holds NaN or infinity; the stream is as it was.
        """
        if outputs not in get_args(Outputs):
            raise InputError(f"outputs={outputs!r} is not one of {', '.join(get_args(Outputs))}.")
        self._feeder.refuse_unready()
        data = self._contract.data
        given = named(data, x, "feed")
        several = len(data) > 1
        items = {spec.name: chunk_array(spec, given[spec.name], self.batch, may_be_empty=several) for spec in data}
        return self._feeder.feed(items, outputs)

    @exclusive
    def finish(self, pad: float = 0) -> Any:
        """End the stream: fill up a step that is not complete, and give the outputs that are still due.

        Args:
            pad: What a step that is not complete is filled up with.

        Returns:
            ``[B, M, *output.shape]``, ``M`` being 0 or more.

        Raises:
            InputError: The stream has ended before.
        """
        self._feeder.refuse_unready()
        result = self._feeder.fill_up(pad)
        self._lane.end()
        return result

    @exclusive
    def hold(self, held: Mapping[str, Any]) -> None:
        """Give inputs that hold for the whole stream, such as a speaker's embedding; ``reset`` keeps them.

        Args:
            held: By name: ``[B, *shape]``, or ``[*shape]`` for every stream of the batch.

        Raises:
            InputError: An input is unknown, or has the wrong dtype, shape or range.
            NonFiniteError: A value is not finite, whatever ``on_nan`` is, unless that is ``"pass"``.
        """
        self._feeder.hold(held, finite=self.on_nan != "pass")

    @exclusive
    def reset(self, rows: Rows = None) -> None:
        """Put all streams, or those rows, back to position 0 and the initial state."""
        chosen = checked_rows(rows, self.batch)
        if chosen is not None and not self._contract.has_fixed_size and len(set(chosen)) < self.batch:
            raise InputError("a growing state cannot be reset for some streams only.", hint="Reset all of them.")
        self._lane.reset(chosen)

    @exclusive
    def fork(self, rows: Rows = None) -> Stream:
        """An independent copy: of all streams, or of those rows, in that order; a row may be taken several times."""
        chosen = checked_rows(rows, self.batch)
        if chosen == []:
            raise InputError("a fork needs 1 row or more, got none.")
        copy = self._session.new_stream(self.batch if chosen is None else len(chosen), self.on_nan)
        copy._lane.copy([(self._lane, chosen)])
        return copy

    @classmethod
    def join(cls, streams: Sequence[Stream]) -> Stream:
        """Copy streams into one batch, in that order; every row goes on as it would have alone.

        Raises:
            InputError: There are none, they are of several sessions, or a growing state stands at several positions.
        """
        if not streams or len({(stream._session, stream.on_nan) for stream in streams}) > 1:
            raise InputError("join takes streams of one session with one policy for NaN, 1 or more.")
        session = streams[0]._session
        if not session.contract.has_fixed_size and len({int(p) for s in streams for p in s._positions}) > 1:
            raise InputError("a growing state needs every stream of a batch at one position.")
        rows = sum(stream.batch for stream in streams)
        if rows > 1 and not session.contract.has_batches:
            raise InputError("the graph has tensors without a batch axis: its streams cannot be joined.")
        joined = session.new_stream(rows, streams[0].on_nan)
        with contextlib.ExitStack() as stack:
            for stream in streams:
                stack.enter_context(stream.alone())
            joined._lane.copy([(stream._lane, None) for stream in streams])
        return joined

    @exclusive
    def split(self, rows: Rows) -> Stream:
        """Move those rows out into a stream of their own; this one keeps the others, in their order.

        Raises:
            InputError: A row is named twice, or none would be left, or none was named.
        """
        chosen = checked_rows(rows, self.batch) or []
        kept = [row for row in range(self.batch) if row not in chosen]
        if not chosen or not kept or len(set(chosen)) != len(chosen):
            raise InputError(
                f"split moves some rows out of {self.batch} and leaves some, got {chosen}.",
                hint="Use fork(rows) to copy rows.",
            )
        moved, rest = self.fork(chosen), self.fork(kept)
        self.__dict__.update(rest.__dict__)
        return moved

    @exclusive
    def snapshot(self, note: str = "") -> bytes:
        """State and positions as bytes, which any runtime restores; see :mod:`edgemem.runtimes.snapshot`.

        Args:
            note: Any text, which :meth:`restore` gives back: what is still to be fed, for instance.
        """
        return pack(self._session.fingerprint, self._contract, self._parts(note))

    def save(self, path: str | Path, note: str = "") -> None:
        """Write :meth:`snapshot` to a file, whole or not at all."""
        write_atomic(Path(path), self.snapshot(note))

    @exclusive
    def restore(self, source: bytes | str | Path) -> str:
        """Take over state and positions of a snapshot: the next step is bit-equal to the one it was taken before.

        Returns:
            The note that was given when it was taken.

        Raises:
            SnapshotError: It is of another model, version or batch, damaged, cut short, or cannot be read.
        """
        parts = read(source, self._session.fingerprint, self._contract, self.batch)
        self._install(parts)
        return parts.note

    @exclusive
    def state(self) -> dict[str, Array]:
        """Copies of every state by name, ``[B, *shape]``; bfloat16 as its bits in uint16."""
        return self._lane.arena.read_state()

    @exclusive
    def load_state(self, state: Mapping[str, Array], positions: Any) -> None:
        """Replace state and positions; items left over are dropped.

        Args:
            state: Every state by name, ``[B, *shape]``, in the contract's dtype; bfloat16 as its bits in uint16.
            positions: int64 ``[B]``, or one ``int`` for all; 0 to 2^62.

        Raises:
            InputError: A name, dtype, shape or position is wrong; the stream is as it was.
            NonFiniteError: The guard is on and a state holds NaN or infinity; the stream is as it was.
        """
        where = checked_positions(self._contract, positions, self.batch)
        self._lane.install(checked_states(self._contract, state, where, self._guard), where)
        self._buffers.reset(None)
        self._lane.changed()

    def _parts(self, note: str = "") -> Parts:
        return Parts(self.state(), self.positions, self._buffers.copy(), note)

    def _install(self, parts: Parts) -> None:
        try:
            self.load_state(parts.state, parts.positions)
        except InputError as error:
            raise SnapshotError(f"the snapshot does not hold this model's state: {error}") from error
        self._lane.load_buffers(parts.buffers)

    def _take(self, x: Any) -> None:
        """Check the data of one step and write it to ``_step_input``."""
        if self._limit is not None:
            self._feeder.check_room(1)
        if type(x) is int and self._takes_int:
            if not 0 <= x < self._vocab_size:
                raise token_error(self._contract.input, x)
            self._step_input[0, 0] = x
        else:
            self._write(x)

    def _taken_step(self) -> Any:
        """A step from ``_step_input``, by what the policy for values that are not finite makes of it."""
        if self._is_bad is not None and self._is_bad():
            return self._feeder.feed({self._contract.input.name: self._step_input.copy()}, "last")
        output = self._guarded_step() if self._guard else self._step()
        if self._notes:
            self._feeder.skipped = None
            if self._keep_good is not None:
                self._keep_good()
        return output

    def _step(self) -> Array:
        """One step, by the shortest path where all rows stand at one position in host memory.

        A run reads all weights, which drives this code and its objects out of the caches: what follows the run costs
        ten times what it costs in a loop of its own, so little may follow.
        """
        lane = self._lane
        position = lane.common
        if position is None or not self._direct:
            output = self._compute_step()
            lane.commit(1)
            return output
        arena, positions, output = lane.arena, self._positions, self._step_output
        appends = arena.append_step
        try:
            lane.calls[arena.side]()
        except Exception as error:
            raise lane.failed(error) from error
        for append, window in appends:
            append(position % window)
        arena.side ^= 1
        lane.common = position = position + 1
        positions.fill(position)
        return output

    def _compute_step(self) -> Array:
        """Compute one step from ``_step_input``, leaving the state alone; ``[B, *output.shape]``."""
        self._lane.compute_step()
        return decode_bfloat16(self._step_output) if self._decodes else self._step_output

    def _guarded_step(self) -> Array:
        output = self._compute_step()
        self._feeder.check_new(1, {self._contract.output.name: output[:, np.newaxis]})
        self._lane.commit(1)
        return output

    def _step_of_items(self, x: Any) -> Any:
        """A step of a model that takes or gives more than one item of one tensor."""
        if self._ends is not None and self._ends.take(x):
            self._step()
            return self._ends.give()
        return self._feeder.step(x)

    def _let_go(self) -> None:
        """Let go of the model, so that every later call raises."""
        self._lane.close()
