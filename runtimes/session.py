"""One loaded model, and the streams that run on it: what is the same for every engine.

A :class:`Stream` computes first and commits afterwards. Until the commit the state is as it was, so a failing call
changes nothing; the commit writes the new entries into their rings and swaps the replaced states.
"""

from __future__ import annotations

import operator
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgemem.bundle import Bundle, GraphFile
from edgemem.contract import POSITION, Contract, StateSpec, initial_state
from edgemem.dtypes import decode_bfloat16, numpy_dtype
from edgemem.errors import EdgememError, InputError, NonFiniteError, SnapshotError
from edgemem.files import write_atomic
from edgemem.runtimes import snapshot
from edgemem.runtimes.inputs import chunk_array, step_array, token_error
from edgemem.runtimes.memory import Array
from edgemem.runtimes.top import Top, largest

Outputs = Literal["last", "all", "none"]
Rows = Iterable[int] | int | None


class Session(ABC):
    """One loaded model; many streams share its weights. Streams of one session may run in different threads.

    Args:
        contract: The state contract.
        bundle: The bundle it was opened from; ``None`` for a live torch module.
        device: ``"cpu"`` or ``"cuda"``.
        guard: Check inputs, outputs and new state for NaN and infinity in every call.
    """

    runtime: ClassVar[str]

    def __init__(self, contract: Contract, bundle: Bundle | None, *, device: str, guard: bool) -> None:
        self.contract = contract
        self.device = device
        self.guard = guard
        self._bundle = bundle
        self._graphs = bundle.manifest.graphs if bundle else (GraphFile("", 1, contract.max_chunk),)
        self._closed = False
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()

    @property
    def bundle(self) -> Bundle:
        """The bundle that the session was opened from."""
        if self._bundle is None:
            raise EdgememError("this session runs a live module: it has no bundle.")
        return self._bundle

    @property
    def fingerprint(self) -> str:
        """Identity of the model, which snapshots carry: the bundle's, or a live module's contract's."""
        return self._bundle.fingerprint if self._bundle else self.contract.fingerprint

    @property
    def max_time(self) -> int:
        """Most time steps of one call to the engine; longer chunks are split."""
        return min(self.contract.max_chunk, max(graph.max_time for graph in self._graphs))

    def stream(self, batch: int = 1) -> Stream:
        """A new stream at position 0.

        Args:
            batch: Streams that advance together, each at its own position.
        """
        if not isinstance(batch, int) or batch < 1:
            raise InputError(f"a stream needs a batch of 1 or more, got {batch!r}.")
        return self._open_stream(batch, initial=True)

    def close(self) -> None:
        """Release the model. Streams of this session cannot be used any more."""
        self._closed = True
        for stream in list(self._streams):
            stream._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_stream(self, batch: int, *, initial: bool) -> Stream:
        if self._closed:
            raise EdgememError("the session is closed.", hint="Open the bundle again.")
        stream = self._new_stream(batch, initial)
        self._streams.add(stream)
        return stream

    def _pieces(self, time: int) -> Iterator[int]:
        """Lengths, each as long as a graph takes, that sum to ``time``."""
        while time:
            cap = min(time, self.contract.max_chunk)
            length = max(min(graph.max_time, cap) for graph in self._graphs if graph.min_time <= cap)
            yield length
            time -= length

    @abstractmethod
    def _new_stream(self, batch: int, initial: bool) -> Stream:
        """A stream; its state is undefined unless ``initial``."""


class Stream(ABC):
    """``B`` streams that advance together, each at its own position. Use a stream from one thread at a time.

    Attributes:
        batch: ``B``.
    """

    def __init__(self, session: Session, batch: int, positions: NDArray[np.int64], step_input: Array) -> None:
        self.batch = batch
        self._session = session
        self._contract = session.contract
        self._guard = session.guard
        self._positions = positions
        self._common: int | None = 0  # position of every row, None where rows differ
        self._step_input = step_input  # [B, 1, *input.shape], which _compute_step reads
        self._vocab_size = session.contract.input.vocab_size or 0
        self._limit = session.contract.max_position
        self._takes_int = batch == 1 and session.contract.input.is_tokens and session.contract.input.shape == ()

    # What an engine does.

    @abstractmethod
    def _compute_step(self) -> Array:
        """Compute one step from ``_step_input``, leaving the state alone; gives ``[B, *output.shape]``, read-only."""

    def _picks(self, k: int) -> bool:
        """Whether the engine itself picks the ``k`` largest outputs, so that :meth:`_compute_top` may be called."""
        return False

    def _compute_top(self, k: int) -> Top:
        """Compute one step as :meth:`_compute_step` does, and give the ``k`` largest outputs."""
        raise NotImplementedError

    @abstractmethod
    def _compute_chunk(self, data: Array, every: bool) -> Array:
        """Compute ``data`` ``[B, T, ...]``, ``T > 1``, leaving the state alone.

        Returns:
            The outputs of every time step ``[B, T, ...]``, or of the last alone ``[B, 1, ...]``.
        """

    @abstractmethod
    def _new_state(self, time: int) -> Iterator[tuple[StateSpec, Array]]:
        """What the last computation would make of each state: the whole new value, or the new entries."""

    @abstractmethod
    def _commit(self, time: int) -> None:
        """Make what the last computation put out the state. ``_positions`` are still those before the call."""

    @abstractmethod
    def _read(self, state: StateSpec) -> Array:
        """A copy of a state, ``[B, *shape]``."""

    @abstractmethod
    def _write(self, state: StateSpec, value: Array) -> None:
        """Replace a state; ``value`` has been checked."""

    @abstractmethod
    def _close(self) -> None:
        """Let go of the model, so that every later call raises."""

    def _reset_rows(self, rows: Sequence[int] | None) -> None:
        for state in self._contract:
            value = initial_state(state, self.batch)
            if rows is not None:
                fresh, value = value, self._read(state)
                value[list(rows)] = fresh[list(rows)]
            self._write(state, value)

    def _copy_rows(self, source: Stream, rows: Sequence[int] | None) -> None:
        """Take over state and positions of another stream of the session: its rows, in that order."""
        for state in self._contract:
            value = source._read(state)
            self._write(state, value if rows is None else value[list(rows)])
        self._positions[...] = source._positions if rows is None else source._positions[list(rows)]

    # What a user calls.

    @property
    def positions(self) -> NDArray[np.int64]:
        """Time steps seen by each stream since its start, int64 ``[B]`` (a copy)."""
        return self._positions.copy()

    @property
    def position(self) -> int:
        """Time steps seen by the first stream."""
        return int(self._positions[0])

    def step(self, x: Any) -> Array:
        """Advance by one time step.

        Args:
            x: Token ids: an ``int``, ``[B]`` or ``[B, 1]``; or features: ``[F]``, ``[B, F]`` or ``[B, 1, F]``.

        Returns:
            The output ``[B, *output.shape]``: a read-only view that holds until the stream's next call.

        Raises:
            InputError: Wrong dtype, shape or range; or the stream is at the model's last position.
            NonFiniteError: The guard is on and saw NaN or infinity.
        """
        self._take(x)
        return self._guarded_step() if self._guard else self._step()

    def step_top(self, x: Any, k: int = 1) -> Top:
        """Advance by one time step and give the ``k`` largest outputs alone.

        A device that picks them itself (:class:`~edgemem.runtimes.trt.session.TrtSession`, engines built with
        ``--top-k``) copies no more than these to the host; every other runtime picks them from the whole output.

        Args:
            x: As in :meth:`step`.
            k: 1 to ``V``.

        Returns:
            Their values float32 ``[B, k]``, in descending order, and their indices int64 ``[B, k]``. Of equal values
            the lower index comes first, and NaN before all; where the device picks neither is certain.

        Raises:
            InputError: As in :meth:`step`; or the model's output is no row of ``V`` values, or ``k`` is out of range.
            NonFiniteError: The guard is on and saw NaN or infinity.
        """
        shape = self._contract.output.shape
        if len(shape) != 1 or not isinstance(k, int) or not 1 <= k <= shape[0]:
            raise InputError(
                f"step_top with k={k!r} of {self._contract.output.name} {list(shape)}: it takes 1 to V of [V]."
            )
        if self._guard or not self._picks(k):
            return largest(self.step(x), k)
        self._take(x)
        top = self._compute_top(k)
        self._commit(1)
        self._advance(1)
        return top

    def feed(self, x: Any, outputs: Outputs = "last") -> Array | None:
        """Advance by any number of time steps, in chunks as long as the model takes.

        Where a chunk fails for a reason other than the guard's, the stream stands behind the last good chunk.

        Args:
            x: Token ids ``[T]`` or ``[B, T]``; or features ``[T, F]`` or ``[B, T, F]``.
            outputs: Which outputs to return: of the last time step, of all, or of none.

        Returns:
            ``[B, *output.shape]`` for ``"last"``, ``[B, T, *output.shape]`` for ``"all"``; memory of its own.

        Raises:
            InputError: Wrong dtype, shape or range, or more than the model has positions for; the stream is as it was.
            NonFiniteError: The guard is on and saw NaN or infinity; the stream is as it was.
        """
        if outputs not in get_args(Outputs):
            raise InputError(f"outputs={outputs!r} is not one of {', '.join(get_args(Outputs))}.")
        data = chunk_array(self._contract.input, x, self.batch)
        time = data.shape[1]
        if self._limit is not None:
            self._check_room(time)
        lengths = list(self._session._pieces(time))
        if not self._guard:
            return self._feed(data, lengths, outputs)
        self._check_data(data)
        before = (self.state(), self.positions) if len(lengths) > 1 else None
        try:
            return self._feed(data, lengths, outputs)
        except NonFiniteError:
            if before is not None:
                self._install(*before)
            raise

    def _feed(self, data: Array, lengths: list[int], outputs: Outputs) -> Array | None:
        every: Array | None = None
        values: Array | None = None
        done = 0
        for length in lengths:
            part = data[:, done : done + length]
            if length == 1:
                self._step_input[...] = part
                values = self._compute_step()[:, np.newaxis]
            else:
                values = self._compute_chunk(part, outputs == "all")
            if self._guard:
                self._check_new(length, values)
            self._commit(length)
            self._advance(length)
            if outputs == "all":
                if every is None:
                    every = np.empty((self.batch, data.shape[1], *values.shape[2:]), values.dtype)
                every[:, done : done + length] = values
            done += length
        if outputs == "last" and values is not None:
            return values[:, -1].copy()
        return every

    def reset(self, rows: Rows = None) -> None:
        """Put all streams, or those rows, back to position 0 and the initial state."""
        chosen = self._rows(rows)
        if chosen is not None and not self._contract.has_fixed_size and len(set(chosen)) < self.batch:
            raise InputError("a growing state cannot be reset for some streams only.", hint="Reset all of them.")
        self._reset_rows(chosen)
        self._positions[slice(None) if chosen is None else chosen] = 0
        self._positions_changed()

    def fork(self, rows: Rows = None) -> Stream:
        """An independent copy: of all streams, or of those rows, in that order; a row may be taken several times."""
        chosen = self._rows(rows)
        if chosen == []:
            raise InputError("a fork needs 1 row or more, got none.")
        copy = self._session._open_stream(self.batch if chosen is None else len(chosen), initial=False)
        copy._copy_rows(self, chosen)
        copy._positions_changed()
        return copy

    def snapshot(self, note: str = "") -> bytes:
        """State and positions as bytes, which any runtime restores; see :mod:`edgemem.runtimes.snapshot`.

        Args:
            note: Text of the caller's own, which :meth:`restore` gives back: what is still to be fed, for instance.
        """
        return snapshot.pack(self._session.fingerprint, self._contract, self.state(), self.positions, note)

    def save(self, path: str | Path, note: str = "") -> None:
        """Write :meth:`snapshot` to a file, whole or not at all."""
        write_atomic(Path(path), self.snapshot(note))

    def restore(self, source: bytes | str | Path) -> str:
        """Take over state and positions of a snapshot: the next step is bit-equal to the one it was taken before.

        Returns:
            The note that was given when it was taken.

        Raises:
            SnapshotError: It is of another model, version or batch, damaged, cut short, or cannot be read.
        """
        if isinstance(source, (str, Path)):
            try:
                source = Path(source).read_bytes()
            except OSError as error:
                raise SnapshotError(f"the snapshot {source!s} cannot be read: {error.strerror or error}") from error
        state, positions, note = snapshot.unpack(source, self._session.fingerprint, self._contract, self.batch)
        try:
            self.load_state(state, positions)
        except InputError as error:
            raise SnapshotError(f"the snapshot does not hold this model's state: {error}") from error
        return note

    def state(self) -> dict[str, Array]:
        """Copies of every state by name, ``[B, *shape]``; bfloat16 as its bits in uint16."""
        return {state.name: self._read(state) for state in self._contract}

    def load_state(self, state: Mapping[str, Array], positions: Any) -> None:
        """Replace state and positions.

        Args:
            state: Every state by name, ``[B, *shape]``, in the contract's dtype; bfloat16 as its bits in uint16.
            positions: int64 ``[B]``, or one ``int`` for all; 0 or more.

        Raises:
            InputError: A name, dtype, shape or position is wrong; the stream is as it was.
            NonFiniteError: The guard is on and a state holds NaN or infinity; the stream is as it was.
        """
        where = self._checked_positions(positions)
        names = {spec.name for spec in self._contract}
        if names != set(state):
            missing, unknown = sorted(names - set(state)), sorted(set(state) - names)
            raise InputError(f"the state lacks {missing or 'nothing'} and holds {unknown or 'nothing'} unknown.")
        checked = {spec.name: self._checked_state(spec, state[spec.name], where) for spec in self._contract}
        self._install(checked, where)

    # How it is done.

    def _install(self, state: Mapping[str, Array], positions: NDArray[np.int64]) -> None:
        for spec in self._contract:
            self._write(spec, state[spec.name])
        self._positions[...] = positions
        self._positions_changed()

    def _take(self, x: Any) -> None:
        """Check the data of one step and write it to ``_step_input``."""
        if self._limit is not None:
            self._check_room(1)
        if type(x) is int and self._takes_int:
            if not 0 <= x < self._vocab_size:
                raise token_error(self._contract.input, x)
            self._step_input[0, 0] = x
        else:
            self._step_input[...] = step_array(self._contract.input, x, self.batch)

    def _step(self) -> Array:
        """Compute one step from ``_step_input`` and make it the state."""
        output = self._compute_step()
        self._commit(1)
        self._advance(1)
        return output

    def _guarded_step(self) -> Array:
        self._check_data(self._step_input)
        output = self._compute_step()
        self._check_new(1, output[:, np.newaxis])
        self._commit(1)
        self._advance(1)
        return output

    def _check_room(self, time: int) -> None:
        limit = self._limit
        assert limit is not None
        if (last := int(self._positions.max())) + time > limit:
            raise InputError(
                f"the stream is at position {last}: {time} more would pass the {limit} that this model was exported "
                "for.",
                hint="Reset the stream, or export with a larger --max-length, or with --memory to stream for ever.",
            )

    def _advance(self, time: int) -> None:
        if self._common is not None:
            self._common += time
            self._positions.fill(self._common)
        else:
            self._positions += time

    def _positions_changed(self) -> None:
        first = int(self._positions[0])
        self._common = first if bool((self._positions == first).all()) else None

    def _rows(self, rows: Rows) -> list[int] | None:
        if rows is None:
            return None
        try:
            chosen = [operator.index(row) for row in ([rows] if isinstance(rows, int) else rows)]
        except TypeError as error:
            raise InputError(f"rows are indices of streams, got {rows!r}.") from error
        if wrong := [row for row in chosen if not 0 <= row < self.batch]:
            raise InputError(
                f"row {wrong[0]} of a stream with batch {self.batch}: rows run from 0 to {self.batch - 1}."
            )
        return chosen

    def _checked_positions(self, positions: Any) -> NDArray[np.int64]:
        array = np.asarray(positions)
        if array.dtype.kind not in "iu" or array.shape not in ((), (self.batch,)):
            raise InputError(
                f"positions of dtype {array.dtype} and shape {list(array.shape)}, wanted integers [{self.batch}]."
            )
        if array.min() < 0:
            raise InputError(f"positions must be 0 or more, got {int(array.min())}.")
        if self._limit is not None and array.max() > self._limit:
            raise InputError(f"positions of this model end at {self._limit}, got {int(array.max())}.")
        return np.broadcast_to(array, (self.batch,)).astype(np.int64)

    def _checked_state(self, spec: StateSpec, value: Array, positions: NDArray[np.int64]) -> Array:
        value = np.asarray(value)
        shape: tuple[int, ...] = (self.batch, *spec.fixed_shape)
        if spec.growing_axis is not None:
            if self.batch > 1 and len(set(positions.tolist())) > 1:
                raise InputError(f"state {spec.name!r} grows: every stream of the batch must be at one position.")
            axis = 1 + spec.growing_axis
            shape = (*shape[:axis], int(positions[0]), *shape[axis + 1 :])
        if value.dtype != numpy_dtype(spec.dtype) or value.shape != shape:
            raise InputError(
                f"state {spec.name!r} of dtype {value.dtype} and shape {list(value.shape)}, "
                f"wanted {numpy_dtype(spec.dtype)} {list(shape)}."
            )
        if self._contract.position == "none" and spec.name == POSITION and not np.array_equal(value, positions):
            raise InputError(f"the state 'position' says {value.tolist()}, positions say {positions.tolist()}.")
        if self._guard and (index := _first_nonfinite(spec.dtype, value)) and np.isfinite(spec.initial):
            raise NonFiniteError(f"state {spec.name!r} to load holds a value that is not finite at {list(index)}.")
        return value

    def _check_data(self, data: Array) -> None:
        spec = self._contract.input
        if index := _first_nonfinite(spec.dtype, data):
            row, time = index[:2]
            raise NonFiniteError(
                f"{spec.name} at position {self._positions[row] + time} (stream {row}) holds "
                f"{_value(spec.dtype, data, index)}.",
                hint="The stream is as it was before the call.",
            )

    def _check_new(self, time: int, output: Array) -> None:
        """Reject a computation whose output ``[B, S, ...]``, ``S`` being 1 or ``time``, or new state is not finite."""
        spec = self._contract.output
        if index := _first_nonfinite(_decoded(spec.dtype), output):
            self._reject(
                f"output {spec.name!r}", index[0], time - output.shape[1] + index[1], _value("", output, index)
            )
        for state, value in self._new_state(time):
            if np.isfinite(state.initial) and (index := _first_nonfinite(state.dtype, value)):
                step = index[2] if state.update == "append" else None
                self._reject(f"state {state.name!r}", index[0], step, _value(state.dtype, value, index), time)

    def _reject(self, what: str, row: int, step: int | None, value: str, time: int = 1) -> None:
        first = int(self._positions[row])
        if step is not None:
            first += step
        where = f"position {first}" if step is not None or time == 1 else f"positions {first} to {first + time - 1}"
        raise NonFiniteError(
            f"{what} became {value} at {where} (stream {row}).", hint="The stream is as it was before the call."
        )


def _decoded(dtype: str) -> str:
    """The dtype in which users get outputs: bfloat16 comes as float32."""
    return "float32" if dtype == "bfloat16" else dtype


def _first_nonfinite(dtype: str, array: Array) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity, or ``None``."""
    if dtype == "bfloat16":
        array = decode_bfloat16(array)
    if array.dtype.kind != "f" or (finite := np.isfinite(array)).all():
        return None
    return tuple(int(i) for i in np.argwhere(~finite)[0])


def _value(dtype: str, array: Array, index: tuple[int, ...]) -> str:
    value = array[index]
    return str(decode_bfloat16(np.asarray(value))[()] if dtype == "bfloat16" else value)
