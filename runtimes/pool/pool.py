"""The pool: it advances, again and again, every stream that has data, as one batch.

Callers put requests into the queue of a stream. A *turn* makes one step of all streams whose next request is a step (a
*tick*), then one slice of one stream's longer work, such as a feed: while steps wait, such work gets half of the time
at most. A caller that waits for a result takes turns itself, which saves two changes of thread; a thread takes them for
those who asked for a future. One of them at a time takes a turn, and only then the state is touched.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgemem.errors import EdgememError, InputError, PoolFullError, QueueFullError
from edgemem.runtimes.inputs import named, step_array
from edgemem.runtimes.memory import Array
from edgemem.runtimes.on_nan import OnNan
from edgemem.runtimes.pool.bank import Bank
from edgemem.runtimes.pool.jobs import opened, stepped
from edgemem.runtimes.pool.requests import (
    Outcome,
    Request,
    Step,
    Ticket,
    Work,
    blank,
    fail,
    gathered,
    refuse,
    runs_of,
    settle,
)
from edgemem.runtimes.pool.stats import PoolStats
from edgemem.runtimes.pool.stream import PoolStream
from edgemem.runtimes.snapshot import Parts, read

if TYPE_CHECKING:
    from edgemem.runtimes.session import Session

_Call = tuple[Callable[[], Any], Future[Any]]


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
        self.chunk = min(chunk or session.max_time, session.max_time)
        self._queue, self._wait_s = queue, wait_ms / 1e3
        self._bank = Bank(session, slots, on_nan)
        self._stats = PoolStats(slots)
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)  # the thread waits for work
        self._more = threading.Condition(self._lock)  # a turn waits for the other streams
        self._turns = threading.Lock()
        self._calls: deque[_Call] = deque()
        self._ready: dict[PoolStream, None] = {}
        self._working: deque[PoolStream] = deque()
        self._owed_s = 0.0
        self._since_s = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="edgemem-pool", daemon=True)
        self._thread.start()

    # What a user calls.

    @property
    def stats(self) -> PoolStats:
        """Figures of this moment."""
        with self._lock:
            waiting = sum(len(stream.requests) for stream in [*self._ready, *self._working])
            streams = int(self._bank.used.sum())
            return PoolStats(**{**vars(self._stats), "waiting": waiting, "streams": streams})

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
                direct = opened(self._bank, row, held, parts)
            except BaseException:
                self._bank.close(row)
                raise
            return PoolStream(self, row, direct)

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
        outcome = self.wait(self.step_soon(streams, x, wake=False))
        for error in outcome.errors.values():
            raise error
        return outcome.outputs

    def step_soon(self, streams: Sequence[PoolStream], x: Any, *, wake: bool = True) -> Future[Outcome]:
        """As :meth:`step`; the future gets the outputs, and the error of each stream that failed.

        Without ``wake``, :meth:`wait` must follow.
        """
        rows = len(streams)
        if rows == 0 or len(set(streams)) < rows or any(stream.pool is not self for stream in streams):
            raise InputError("a step takes streams of this pool, 1 or more, none twice.")
        given = named(self.contract.data, x, "step")
        items = {spec.name: step_array(spec, given[spec.name], rows) for spec in self.contract.data}
        ticket = Ticket(items, rows)
        self.put([(stream, Step(ticket, row)) for row, stream in enumerate(streams)], wake=wake)
        return ticket.future

    def wait(self, future: Future[Any]) -> Any:
        """The result of a call of this pool; takes turns until it is there."""
        while not future.done():
            with self._turns:
                if not future.done():
                    self._turn()
        return future.result()

    def due_ms(self) -> float:
        """About how long the next tick will take, in milliseconds, by what was measured when the pool was opened."""
        return self._bank.windows.estimate(len(self._ready)) * 1e3

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
            if self._calls or self._ready or self._working:
                self._wake.notify()

    def close(self) -> None:
        """End the pool. Calls that wait get an error; the streams' states are gone."""
        with self._lock:
            self._closed = True
            self._wake.notify()
            self._more.notify()
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
        """Queue requests: all of them or none.

        Args:
            requests: Each with its stream.
            wake: Whether the thread shall see to them.
            always: Whether they may exceed the queue.

        Raises:
            QueueFullError: A queue is full.
            EdgememError: The pool or a stream is closed.
        """
        with self._lock:
            for stream, _ in requests:
                if self._closed or stream.closed:
                    raise self._closed_error() if self._closed else stream.closed_error()
                if len(stream.requests) >= self._queue and not always:
                    self._stats.refused += 1
                    raise QueueFullError(
                        f"{len(stream.requests)} calls wait for the stream, as many as its queue holds.",
                        hint="Wait for results before you send more.",
                    )
            for stream, request in requests:
                queue = stream.requests
                queue.append(request)
                if len(queue) == 1:
                    self._schedule(stream)
            self._notify(wake)

    def call(self, function: Callable[[], Any], *, wake: bool = True) -> Future[Any]:
        """Have a function called between two ticks."""
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise self._closed_error()
            self._calls.append((function, future))
            self._notify(wake)
        return future

    def _notify(self, wake: bool) -> None:
        if wake:
            self._wake.notify()
        self._more.notify()

    # Turns.

    def _run(self) -> None:
        while not self._closed:
            with self._lock:
                while not (self._calls or self._ready or self._working or self._closed):
                    self._wake.wait()
            with self._turns:
                self._turn()

    def _turn(self, work: bool = True) -> None:
        """Do what waits: every call, one tick, and one slice of ``work``."""
        with self._lock:
            calls = [self._calls.popleft() for _ in range(len(self._calls))]
            if self._wait_s and not calls:
                self._wait_for_others()
            streams = list(self._ready)
            self._ready.clear()
            owes = streams and self._owed_s > 0
            worker = self._working.popleft() if work and self._working and not owes else None
            if self._closed:
                self._refuse([*streams, *([worker] if worker else []), *self._working], calls)
                return
        for function, future in calls:
            self._answer(function, future)
        started = time.perf_counter()
        if streams:
            self._tick(streams)
            ended = time.perf_counter()
            self._owed_s, started = max(0.0, self._owed_s - (ended - started)), ended
        if worker is not None:
            self._work(worker)
            self._owed_s = time.perf_counter() - started

    def _refuse(self, streams: Sequence[PoolStream], calls: Sequence[_Call]) -> None:
        """Tell everyone who waits that the pool is closed."""
        error = self._closed_error()
        for _, future in calls:
            fail(future, error)
        for stream in streams:
            refuse(list(stream.requests), self.contract, error)
            stream.requests.clear()
        self._working.clear()

    def _wait_for_others(self) -> None:
        """Wait until every stream has a step, or the first has waited as long as it may."""
        until_s = self._since_s + self._wait_s
        while self._ready and not (self._working or self._calls or self._closed):
            left_s = until_s - time.monotonic()
            if left_s <= 0 or len(self._ready) >= int(self._bank.used.sum()):
                return
            self._more.wait(left_s)

    def _answer(self, function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            settle(future, function())
        except Exception as error:
            fail(future, error)

    def _schedule(self, stream: PoolStream) -> None:
        """Put a stream where the first of its requests belongs."""
        if isinstance(stream.requests[0], Step) and stream.direct:
            if not self._ready:
                self._since_s = time.monotonic()
            self._ready[stream] = None
        else:
            self._working.append(stream)

    def _next(self, streams: Sequence[PoolStream]) -> None:
        """Those streams are done with the first of their requests."""
        with self._lock:
            for stream in streams:
                stream.requests.popleft()
                if stream.requests:
                    self._schedule(stream)

    def _tick(self, streams: list[PoolStream]) -> None:
        """One step of each of those streams."""
        bank = self._bank
        steps: list[Step] = [stream.requests[0] for stream in streams]  # type: ignore[misc]
        runs = runs_of(steps)
        rows = np.array([stream.row for stream in streams])
        items: dict[str, Array] = {spec.name: gathered(runs, spec.name) for spec in self.contract.data}
        alone = bank.goes_alone(rows, items)
        if alone.any():
            with self._lock:
                self._working.extend(stream for stream, apart in zip(streams, alone.tolist(), strict=True) if apart)
            if streams := [stream for stream, apart in zip(streams, alone.tolist(), strict=True) if not apart]:
                self._tick(streams)
            return
        try:
            outputs, errors = bank.step(rows, items)
        except Exception as error:
            failure = error if isinstance(error, EdgememError) else EdgememError(f"a step of the pool failed: {error}")
            outputs = {name: np.repeat(value, len(rows), 0) for name, value in blank(self.contract).items()}
            errors = dict.fromkeys(range(len(rows)), failure)
        self._stats.ticks += 1
        self._stats.steps += len(rows)
        self._next(streams)
        place = 0
        for ticket, first, count in runs:
            own = {name: values[place : place + count] for name, values in outputs.items()}
            failed = {i - place: error for i, error in errors.items() if place <= i < place + count} if errors else {}
            if ticket.put(first, own, failed):
                ticket.finish(self.contract)
            place += count

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
        if done:
            self._next([stream])
        else:
            with self._lock:
                self._working.append(stream)

    def _closed_error(self) -> EdgememError:
        return EdgememError("the pool is closed.", hint="Open another one: session.pool().")

    _let_go = close
