"""One stream of a pool."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from edgemem.errors import EdgememError, InputError, PoolFullError
from edgemem.files import write_atomic
from edgemem.runtimes.inputs import chunk_array, named
from edgemem.runtimes.on_nan import finite_items, not_finite
from edgemem.runtimes.pool import jobs
from edgemem.runtimes.pool.requests import Outcome, Request, Work
from edgemem.runtimes.snapshot import Parts, pack
from edgemem.runtimes.stream import Outputs
from edgemem.runtimes.top import Top, largest

if TYPE_CHECKING:
    from edgemem.runtimes.pool.bank import Bank
    from edgemem.runtimes.pool.pool import Pool


class PoolFutures:
    """The calls of a stream of a pool, each as a future. Calls of one stream run in the order in which they were made.

    Args:
        stream: The stream.
        wake: Whether the pool's thread sees to the calls; otherwise :meth:`Pool.wait` must follow each.
    """

    def __init__(self, stream: PoolStream, wake: bool) -> None:
        self._stream, self._wake = stream, wake

    def step(self, x: Any) -> Future[Outcome]:
        """See :meth:`PoolStream.step`."""
        return self._stream.pool.step_soon([self._stream], x, wake=self._wake)

    def feed(self, x: Any, outputs: Outputs = "last") -> Future[Any]:
        """See :meth:`PoolStream.feed`."""
        stream, contract = self._stream, self._stream.pool.contract
        if outputs not in get_args(Outputs):
            raise InputError(f"outputs={outputs!r} is not one of {', '.join(get_args(Outputs))}.")
        given = named(contract.data, x, "feed")
        several = len(contract.data) > 1
        items = {spec.name: chunk_array(spec, given[spec.name], 1, may_be_empty=several) for spec in contract.data}
        for spec in stream.bank.refused_when_not_finite:
            if not finite_items(spec, items[spec.name]).all():
                raise not_finite(spec, items[spec.name], np.array([stream.position]))
        return self._work(partial(jobs.fed, stream.bank, stream, items, outputs))

    def finish(self, pad: float = 0) -> Future[Any]:
        """See :meth:`PoolStream.finish`."""
        return self._alone(lambda: self._stream.bank.guest.finish(pad))

    def hold(self, held: Mapping[str, Any]) -> Future[None]:
        """See :meth:`PoolStream.hold`."""
        return self._alone(lambda: self._stream.bank.guest.hold(held))

    def reset(self) -> Future[None]:
        """See :meth:`PoolStream.reset`."""
        return self._alone(lambda: self._stream.bank.guest.reset())

    def parts(self) -> Future[Parts]:
        """What a snapshot holds: packing it takes longer, and is left to the caller (:meth:`PoolStream.pack`)."""
        stream = self._stream

        def read() -> jobs.Slices:
            return next(stream.bank.parts(np.array([stream.row])))
            yield

        return self._work(read)

    def install(self, parts: Parts) -> Future[None]:
        """Take over what :meth:`Pool.read` read."""
        return self._alone(lambda: self._stream.bank.guest._install(parts))

    def fork(self) -> Future[PoolStream]:
        """See :meth:`PoolStream.fork`."""
        stream = self._stream

        def copy() -> jobs.Slices:
            row = stream.bank.open()
            if row < 0:
                raise PoolFullError("all slots of the pool hold a stream.", hint="Close one first.")
            stream.bank.copy(stream.row, row)
            return PoolStream(stream.pool, row)
            yield

        return self._work(copy)

    def close(self) -> Future[None]:
        """See :meth:`PoolStream.close`."""
        stream = self._stream
        if stream.closed:
            done: Future[None] = Future()
            done.set_result(None)
            return done

        def give_back() -> jobs.Slices:
            stream.bank.close(stream.row)
            return
            yield

        stream.closed = True  # first, so that nothing can come behind it
        return self._work(give_back, always=True)

    def _alone(self, function: Callable[[], Any]) -> Future[Any]:
        stream = self._stream

        def run() -> jobs.Slices:
            stream.bank.lend(stream.row)
            found = function()
            stream.bank.take_back(stream.row)
            return found
            yield

        return self._work(run)

    def _work(self, job: Callable[[], jobs.Slices], *, always: bool = False) -> Future[Any]:
        future: Future[Any] = Future()
        self._stream.pool.put([(self._stream, Work(job, future))], wake=self._wake, always=always)
        return future


class PoolStream:
    """One stream of a :class:`Pool`, with the calls of a :class:`edgemem.Stream` of batch 1.

    Args:
        pool: The pool.
        row: Where its state lies.

    Attributes:
        soon: The same calls, which return futures.
        requests: What waits for it.
        closed: Whether it was closed.
    """

    __slots__ = ("_now", "bank", "closed", "pool", "requests", "row", "soon")  # a step of many touches each

    def __init__(self, pool: Pool, row: int) -> None:
        self.pool, self.row = pool, row
        self.bank: Bank = pool._bank
        self.soon, self._now = PoolFutures(self, wake=True), PoolFutures(self, wake=False)
        self.requests: deque[Request] = deque()
        self.closed = False

    @property
    def direct(self) -> bool:
        """Whether it can step with others."""
        return bool(self.bank.direct[self.row])

    @property
    def position(self) -> int:
        """Steps since its start, of those that are done."""
        return int(self.bank.positions[self.row])

    def step(self, x: Any) -> Any:
        """Advance by one step; see :meth:`edgemem.Stream.step`. What is returned is the caller's memory.

        Raises:
            QueueFullError: Too many calls wait for this stream.
            EdgememError: As :meth:`edgemem.Stream.step`; the stream is as it was.
        """
        return self.pool.step([self], x)

    def step_top(self, x: Any, k: int = 1) -> Top:
        """Advance by one step and give the ``k`` largest outputs alone; see :meth:`edgemem.Stream.step_top`."""
        output = self.pool.contract.output
        if len(output.shape) != 1 or not self.pool.contract.is_plain or not 1 <= k <= output.shape[0]:
            raise InputError(f"step_top with k={k!r} of {output.name} {list(output.shape)}: it takes 1 to V of [V].")
        return largest(self.step(x), k)

    def feed(self, x: Any, outputs: Outputs = "last") -> Any:
        """Advance by any number of items; see :meth:`edgemem.Stream.feed`. Other streams step between its chunks."""
        return self.pool.wait(self._now.feed(x, outputs))

    def finish(self, pad: float = 0) -> Any:
        """End the stream; see :meth:`edgemem.Stream.finish`."""
        return self.pool.wait(self._now.finish(pad))

    def hold(self, held: Mapping[str, Any]) -> None:
        """Give inputs that hold for the whole stream; see :meth:`edgemem.Stream.hold`."""
        self.pool.wait(self._now.hold(held))

    def reset(self) -> None:
        """Go back to position 0 and the initial state."""
        self.pool.wait(self._now.reset())

    def fork(self) -> PoolStream:
        """An independent copy.

        Raises:
            PoolFullError: Every slot holds a stream.
        """
        copy: PoolStream = self.pool.wait(self._now.fork())
        return copy

    def snapshot(self, note: str = "") -> bytes:
        """State and position as bytes; see :meth:`edgemem.Stream.snapshot`."""
        return self.pack(self.pool.wait(self._now.parts()), note)

    def pack(self, parts: Parts, note: str = "") -> bytes:
        """What :meth:`PoolFutures.parts` gave, as bytes."""
        return pack(
            self.pool.session.fingerprint,
            self.pool.contract,
            Parts(parts.state, parts.positions, parts.buffers, note),
        )

    def save(self, path: str | Path, note: str = "") -> None:
        """Write :meth:`snapshot` to a file, whole or not at all."""
        write_atomic(Path(path), self.snapshot(note))

    def restore(self, source: bytes | str | Path) -> str:
        """Take over a snapshot, and return its note; see :meth:`edgemem.Stream.restore`."""
        parts = self.pool.read(source)
        self.pool.wait(self._now.install(parts))
        return parts.note

    def close(self) -> None:
        """Give its slot back, once the calls that wait are done. A second call does nothing."""
        self.pool.wait(self._now.close())

    def closed_error(self) -> EdgememError:
        """The error for a call of a stream that was closed."""
        return EdgememError("the stream is closed.", hint="Open another one: pool.open().")

    def __enter__(self) -> PoolStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.pool.closed:
            self.close()


def parts_soon(streams: Sequence[PoolStream]) -> Future[Iterator[Parts]]:
    """What snapshots of streams of one pool hold between two ticks; calls that still wait for a stream are not in it.

    It costs the pool a small part of what :meth:`PoolFutures.parts` costs for each.
    """
    bank, rows = streams[0].bank, np.array([stream.row for stream in streams])
    return streams[0].pool.call(lambda: bank.parts(rows))
