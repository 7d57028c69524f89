"""The pool: it advances, again and again, every stream that has data, as one batch.

Callers put requests into the queue of a stream. A *turn* makes one step of all streams whose next request is a step (a
*tick*), then one slice of one stream's longer work, such as a feed: while steps wait, such work gets half of the time
at most. A caller that waits for a result takes turns itself, which saves two changes of thread; a thread takes them for
those who asked for a future. One of them at a time takes a turn, and only then the state is touched.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import EdgememError, InputError, PoolFullError
from edgemem.runtimes.inputs import named, step_array, step_reader
from edgemem.runtimes.memory import Array
from edgemem.runtimes.on_nan import OnNan
from edgemem.runtimes.pool.bank import Bank, Rows
from edgemem.runtimes.pool.jobs import opened, stepped
from edgemem.runtimes.pool.requests import (
    Outcome,
    Request,
    Ticket,
    Work,
    blank,
    fail,
    outcome,
    settle,
)
from edgemem.runtimes.pool.stats import PoolStats
from edgemem.runtimes.pool.stream import PoolStream
from edgemem.runtimes.pool.waiting import Group, Waiting, closed_error, together
from edgemem.runtimes.snapshot import Parts, read

if TYPE_CHECKING:
    from edgemem.runtimes.session import Session


class Pool:
    """Many streams of one session that step together. Open one with :meth:`edgemem.Session.pool`, and close it.

    It may be used from any thread; every call that returns a future also serves asyncio, by ``asyncio.wrap_future``.
    Each stream computes what it would compute alone, bit for bit in float32, whoever steps beside it.

    Args:
        session: The session.
        slots: Streams at a time.
        on_nan: See :meth:`edgemem.Session.stream`.
        queue: Calls that may wait for one stream.
        wait_ms: How long a step waits for steps of the other streams, in milliseconds.
        chunk: Steps of a feed between two ticks; ``None``: as many as one call of the engine takes.

    Raises:
        InputError: The model's state grows, it computes one stream, or a number is out of range.
    """

    def __init__(
        self, session: Session, slots: int, *, on_nan: OnNan, queue: int, wait_ms: float, chunk: int | None
    ) -> None:
        for name, value in (("slots", slots), ("queue", queue), ("chunk", 1 if chunk is None else chunk)):
            if not isinstance(value, int) or value < 1:
                raise InputError(f"a pool needs {name} of 1 or more, got {value!r}.")
        if not 0 <= wait_ms < 60_000:
            raise InputError(f"wait_ms must be from 0 to 60,000, got {wait_ms!r}.")
        self.session, self.contract = session, session.contract
        self._data = session.contract.data
        self._readers: dict[int, Callable[[Any], Array]] = {}
        self.chunk = min(chunk or session.max_time, session.max_time)
        self._wait_s = wait_ms / 1e3
        self._bank = Bank(session, slots, on_nan)
        self._stats = PoolStats(slots)
        self._waiting = Waiting(slots, queue, self._bank.direct)
        self._lock = self._waiting.lock
        self._turns = threading.Lock()
        self._owed_s = 0.0
        self._thread = threading.Thread(target=self._run, name="edgemem-pool", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"Pool({self._stats.slots} slots, {self.session!r})"

    # What a user calls.

    @property
    def stats(self) -> PoolStats:
        """Figures of this moment."""
        waiting = self._waiting
        with self._lock:
            requests = sum(len(stream.requests) for stream in [*waiting.ready, *waiting.working])
            requests += sum(len(group.rows) for group in waiting.groups)
            now = {"waiting": requests, "streams": int(self._bank.used.sum()), "refused": waiting.refused}
            return PoolStats(**{**vars(self._stats), **now})

    @property
    def closed(self) -> bool:
        """Whether the pool was closed."""
        return self._waiting.closed

    def open(self, held: Mapping[str, Any] | None = None, restore: bytes | None = None) -> PoolStream:
        """A new stream, at position 0 or as a snapshot holds it.

        Args:
            held: The inputs that it is given once; see :meth:`edgemem.Stream.hold`.
            restore: A snapshot of a stream of batch 1.

        Raises:
            PoolFullError: Every slot holds a stream.
            InputError: ``held`` is wrong.
            SnapshotError: The snapshot is damaged, or of another model.
        """
        stream: PoolStream = self.wait(self.open_soon(held, restore, wake=False))
        return stream

    def open_soon(
        self, held: Mapping[str, Any] | None = None, restore: bytes | None = None, *, wake: bool = True
    ) -> Future[PoolStream]:
        """As :meth:`open`; the future gets the stream. Without ``wake``, :meth:`wait` must follow."""
        parts = None if restore is None else self.read(restore)

        def open_one() -> PoolStream:
            row = self._bank.open()
            if row < 0:
                raise PoolFullError(
                    f"all {self._stats.slots} slots of the pool hold a stream.",
                    hint="Close one, or open the pool with more slots.",
                )
            try:
                opened(self._bank, row, held, parts)
            except BaseException:
                self._bank.close(row)
                raise
            return PoolStream(self, row)

        return self.call(open_one, wake=wake)

    def read(self, source: bytes | str | Path) -> Parts:
        """Read and check a snapshot of one stream."""
        return read(source, self.session.fingerprint, self.contract, 1)

    def step(self, streams: Sequence[PoolStream], x: Any) -> Any:
        """Advance those streams by one step each, together.

        Args:
            streams: Streams of this pool, none twice.
            x: As :meth:`edgemem.Stream.step` takes it for a batch of as many.

        Returns:
            As :meth:`edgemem.Stream.step`; the caller's memory.

        Raises:
            EdgememError: As there; of the first that failed. The others have advanced.
            QueueFullError: Too much waits for one of them; none has advanced.
        """
        rows, items = self._given(streams, x)
        found = self._step_at_once(streams, rows, items)
        if found is None:
            found = self.wait(self._step_soon(streams, rows, items, wake=False))
        for error in found.errors.values():
            raise error
        return found.outputs

    def step_soon(self, streams: Sequence[PoolStream], x: Any, *, wake: bool = True) -> Future[Outcome]:
        """As :meth:`step`; the future gets the outputs, and the error of each stream that failed.

        Without ``wake``, :meth:`wait` must follow.
        """
        return self._step_soon(streams, *self._given(streams, x), wake=wake)

    def try_step(self, streams: Sequence[PoolStream], x: Any) -> Outcome | None:
        """As :meth:`step_soon`, here and now; ``None`` where somebody else is at it or waits: nothing was done then."""
        return self._step_at_once(streams, *self._given(streams, x))

    def _given(self, streams: Sequence[PoolStream], x: Any) -> tuple[Rows, dict[str, Array]]:
        """The rows int64 ``[K]`` of those streams, and what was passed by input, ``[K, step_items, *item_shape]``."""
        own = [stream.row for stream in streams if stream.pool is self]
        if not own or len(set(own)) < len(streams):
            raise InputError("a step takes streams of this pool, 1 or more, none twice.")
        rows, first = np.array(own), self._data[0]
        if len(self._data) == 1:
            read = self._readers.get(len(own)) or self._readers.setdefault(len(own), step_reader(first, len(own)))
            return rows, {first.name: read(x)}
        given = named(self._data, x, "step")
        return rows, {spec.name: step_array(spec, given[spec.name], len(own)) for spec in self._data}

    def _step_soon(
        self, streams: Sequence[PoolStream], rows: Rows, items: Mapping[str, Array], *, wake: bool
    ) -> Future[Outcome]:
        ticket = Ticket(items, len(rows))
        with self._lock:
            self._waiting.put_steps(ticket, rows, streams)
            self._notify(wake)
        return ticket.future

    def _step_at_once(self, streams: Sequence[PoolStream], rows: Rows, items: Mapping[str, Array]) -> Outcome | None:
        """A step past the queues, where they are empty; what comes meanwhile waits for the next turn."""
        if self._wait_s or not self._turns.acquire(blocking=False):
            return None
        try:
            if self._waiting or not self._waiting.takes(rows, streams) or self._bank.goes_alone(rows, items):
                return None
            return outcome(self.contract, *self._advanced(rows, items))
        finally:
            self._turns.release()

    def positions(self, streams: Sequence[PoolStream]) -> list[int]:
        """Where each of those streams stands; see :attr:`PoolStream.position`."""
        found: list[int] = self._bank.positions[[stream.row for stream in streams]].tolist()
        return found

    def wait(self, future: Future[Any]) -> Any:
        """The result of a call of this pool; takes turns until it is there."""
        while not future.done():
            with self._turns:
                if not future.done():
                    self._turn()
        return future.result()

    @property
    def due(self) -> int:
        """Steps that the next tick will make."""
        return self._waiting.steps

    def steps_within(self, time_ms: float) -> int:
        """Steps of a tick that takes so many milliseconds at most, by what was measured when the pool was opened."""
        return self._bank.windows.rows_within(time_ms / 1e3)

    def try_turn(self) -> None:
        """Make a tick here and now, if nobody else is at it; what is longer is left to the pool's thread.

        For an event loop that asked for steps without ``wake``, and whose ticks are too short to change threads for.
        """
        if self._turns.acquire(blocking=False):
            try:
                self._turn(work=False)
            finally:
                self._turns.release()
        self.wake()

    def wake(self) -> None:
        """Have the pool's thread see to what waits."""
        with self._lock:
            if self._waiting:
                self._waiting.wake.notify()

    def close(self) -> None:
        """End the pool. Calls that wait get an error; the streams' states are gone."""
        with self._lock:
            self._waiting.closed = True
            self._notify(True)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        with self._turns:
            self._turn()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What its streams call.

    def put(self, requests: Sequence[tuple[PoolStream, Request]], *, wake: bool = True, always: bool = False) -> None:
        """Queue requests, all of them or none; see :meth:`Waiting.put`. ``wake``: the thread shall see to them."""
        with self._lock:
            self._waiting.put(requests, always=always)
            self._notify(wake)

    def call(self, function: Callable[[], Any], *, wake: bool = True) -> Future[Any]:
        """Have a function called between two ticks."""
        future: Future[Any] = Future()
        with self._lock:
            if self._waiting.closed:
                raise closed_error()
            self._waiting.calls.append((function, future))
            self._notify(wake)
        return future

    def _notify(self, wake: bool) -> None:
        if wake:
            self._waiting.wake.notify()
        if self._wait_s:
            self._waiting.more.notify()

    # Turns.

    def _run(self) -> None:
        waiting = self._waiting
        while not waiting.closed:
            with self._lock:
                while not (waiting or waiting.closed):
                    waiting.wake.wait()
            with self._turns:
                self._turn()

    def _turn(self, work: bool = True) -> None:
        """Do what waits: every call, one tick, and one slice of ``work``."""
        waiting = self._waiting
        with self._lock:
            if self._wait_s and not waiting.calls:
                waiting.wait_for_others(self._wait_s, lambda: int(self._bank.used.sum()))
            if waiting.closed:
                waiting.refuse(self.contract)
                return
            calls, groups, streams = list(waiting.calls), waiting.groups, list(waiting.ready)
            waiting.calls.clear()
            waiting.groups = []
            waiting.ready.clear()
            owes = (groups or streams) and self._owed_s > 0
            worker = waiting.working.popleft() if work and waiting.working and not owes else None
        for function, future in calls:
            self._answer(function, future)
        started = time.perf_counter()
        if groups or streams:
            self._tick(groups, streams)
            ended = time.perf_counter()
            self._owed_s, started = max(0.0, self._owed_s - (ended - started)), ended
        if worker is not None:
            self._work(worker)
            self._owed_s = time.perf_counter() - started

    def _answer(self, function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            settle(future, function())
        except Exception as error:
            fail(future, error)

    def _tick(self, groups: Sequence[Group], streams: Sequence[PoolStream]) -> None:
        """One step of each stream of those groups, and of each of those streams."""
        runs, rows, items = together(groups, streams)
        if alone := self._bank.goes_alone(rows, items):
            self._tick_apart(groups, streams, alone)
            return
        outputs, errors = self._advanced(rows, items)
        with self._lock:
            self._waiting.done(streams, groups)
        if len(runs) == 1:
            runs[0].give(outputs, errors, self.contract)
            return
        place = 0
        for run in runs:
            end = place + run.rows
            own = {name: values[place:end] for name, values in outputs.items()}
            run.give(own, {i - place: error for i, error in errors.items() if place <= i < end}, self.contract)
            place = end

    def _advanced(self, rows: Rows, items: Mapping[str, Array]) -> tuple[dict[str, Array], Mapping[int, Exception]]:
        """One step of those rows; see :meth:`Bank.step`."""
        self._stats.ticks += 1
        self._stats.steps += len(rows)
        try:
            return self._bank.step(rows, items)
        except Exception as error:
            failure = error if isinstance(error, EdgememError) else EdgememError(f"a step of the pool failed: {error}")
            outputs = {name: np.repeat(value, len(rows), 0) for name, value in blank(self.contract).items()}
            return outputs, dict.fromkeys(range(len(rows)), failure)

    def _tick_apart(self, groups: Sequence[Group], streams: Sequence[PoolStream], alone: Sequence[bool]) -> None:
        """A tick of which some streams, in the order of :meth:`_tick`, must step by themselves."""
        with self._lock:
            every = [*self._waiting.split(groups), *streams]
            self._waiting.work_later(stream for stream, apart in zip(every, alone, strict=True) if apart)
        if others := [stream for stream, apart in zip(every, alone, strict=True) if not apart]:
            self._tick([], others)

    def _work(self, stream: PoolStream) -> None:
        """One slice of what a stream does by itself."""
        request = stream.requests[0]
        self._stats.slices += 1
        if isinstance(request, Work):
            done = request.slice()
        else:
            if request.ticket.put(request.index, *stepped(self._bank, stream, request)):
                request.ticket.finish(self.contract)
            done = True
        with self._lock:
            if done:
                self._waiting.done([stream])
            else:
                self._waiting.work_later([stream])

    _let_go = close
