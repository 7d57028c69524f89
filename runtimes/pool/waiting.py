"""What waits in a pool, in order for each stream: groups of steps, single steps, longer work, and calls.

The steps of one call on streams for which nothing else waits stay one *group*, of which an array of rows tells
everything: it costs the same few operations for any number of streams. Every other request waits in its stream's queue.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract
from edgemem.errors import EdgememError, QueueFullError
from edgemem.runtimes.memory import Array
from edgemem.runtimes.pool.requests import Request, Run, Step, Ticket, fail, gathered, refuse, runs_of

if TYPE_CHECKING:
    from edgemem.runtimes.pool.stream import PoolStream

Call = tuple[Callable[[], Any], Future[Any]]


class Group(NamedTuple):
    """The steps of one call: the rows int64 ``[K]`` of its streams, in their order."""

    ticket: Ticket
    rows: NDArray[np.int64]
    streams: Sequence[PoolStream]


def together(
    groups: Sequence[Group], streams: Sequence[PoolStream]
) -> tuple[list[Run], NDArray[np.int64], Mapping[str, Array]]:
    """The steps of those groups, and the first step of each of those streams.

    Returns:
        The steps in runs; their rows, int64 ``[K]``; and their data by name, ``[K, step_items, *item_shape]``.
    """
    if len(groups) == 1 and not streams:  # as most often: its arrays are taken as they are
        ticket, rows, _ = groups[0]
        return [Run(ticket, 0, len(rows))], rows, ticket.items
    runs = [Run(group.ticket, 0, len(group.rows)) for group in groups]
    parts = [group.rows for group in groups]
    if streams:
        runs += runs_of([stream.requests[0] for stream in streams])  # type: ignore[misc]
        parts.append(np.array([stream.row for stream in streams]))
    items = {name: gathered(runs, name) for name in runs[0].ticket.items}
    return runs, np.concatenate(parts), items


class Waiting:
    """The queues of a pool. Whoever calls a method holds :attr:`lock`, unless it says otherwise.

    Args:
        slots: Rows of the pool.
        queue: Requests that may wait for one stream.
        direct: Which rows can step with others, bool ``[slots]``: a view.

    Attributes:
        calls: Functions to be called between two ticks.
        groups: Groups of steps.
        ready: Streams whose first request is a step that can be made with others.
        working: Streams whose first request is something else, first come, first served.
        closed: Whether nothing is taken any more.
        refused: Calls refused because a queue was full.
        since_s: When the first step began to wait, by the monotonic clock.
    """

    def __init__(self, slots: int, queue: int, direct: NDArray[np.bool_]) -> None:
        self.lock = threading.Lock()
        self.wake = threading.Condition(self.lock)  # the thread waits for work
        self.more = threading.Condition(self.lock)  # a turn waits for the other streams
        self.calls: deque[Call] = deque()
        self.groups: list[Group] = []
        self.ready: dict[PoolStream, None] = {}
        self.working: deque[PoolStream] = deque()
        self.closed = False
        self.refused = 0
        self.since_s = 0.0
        self._most, self._direct = queue, direct
        self._idle: NDArray[np.bool_] = np.ones(slots, bool)  # nothing waits for the row
        self._grouped: NDArray[np.bool_] = np.zeros(slots, bool)  # the first that waits is part of a group
        self._late: set[PoolStream] = set()  # more waits for them behind a group

    def __bool__(self) -> bool:
        return bool(self.calls or self.groups or self.ready or self.working)

    @property
    def steps(self) -> int:
        """Steps that can be made now."""
        return len(self.ready) + sum(len(group.rows) for group in self.groups)

    def put_steps(self, ticket: Ticket, rows: NDArray[np.int64], streams: Sequence[PoolStream]) -> None:
        """Take the steps of one call, row by row of its ticket; errors as :meth:`put`."""
        if self._idle[rows].all() and self.takes(rows, streams):
            self._begin()
            self._idle[rows] = False
            self._grouped[rows] = True
            self.groups.append(Group(ticket, rows, streams))
        else:
            self.put([(stream, Step(ticket, place)) for place, stream in enumerate(streams)])

    def takes(self, rows: NDArray[np.int64], streams: Sequence[PoolStream]) -> bool:
        """Whether those streams can step together: all are open, and none must step by itself."""
        together = np.count_nonzero(self._direct[rows]) == len(rows)
        return together and not self.closed and not [stream for stream in streams if stream.closed]

    def put(self, requests: Sequence[tuple[PoolStream, Request]], *, always: bool = False) -> None:
        """Take requests: all of them or none.

        Args:
            requests: Each with its stream.
            always: Whether they may exceed the queue, and close the stream.

        Raises:
            QueueFullError: A queue is full.
            EdgememError: The pool or a stream is closed.
        """
        for stream, _ in requests:
            if self.closed or (stream.closed and not always):
                raise closed_error() if self.closed else stream.closed_error()
            waiting = len(stream.requests) + int(self._grouped[stream.row])
            if waiting >= self._most and not always:
                self.refused += 1
                raise QueueFullError(
                    f"{waiting} calls wait for the stream, as many as its queue holds.",
                    hint="Wait for results before you send more.",
                )
        for stream, request in requests:
            stream.requests.append(request)
            if self._idle[stream.row]:
                self._idle[stream.row] = False
                self._schedule(stream)
            elif self._grouped[stream.row]:
                self._late.add(stream)

    def done(self, streams: Sequence[PoolStream], groups: Sequence[Group] = ()) -> None:
        """Those streams are done with their first request, and those groups with all."""
        for stream in streams:
            stream.requests.popleft()
            self._go_on(stream)
        for group in groups:
            self._grouped[group.rows] = False
            self._idle[group.rows] = True
        for stream in [late for late in self._late if not self._grouped[late.row]] if self._late else ():
            self._late.discard(stream)
            self._go_on(stream)

    def split(self, groups: Sequence[Group]) -> list[PoolStream]:
        """Put the steps of groups into the queues of their streams, first of all; those streams."""
        streams = []
        for group in groups:
            self._grouped[group.rows] = False
            for place, stream in enumerate(group.streams):
                stream.requests.appendleft(Step(group.ticket, place))
                self._late.discard(stream)
                streams.append(stream)
        return streams

    def work_later(self, streams: Iterable[PoolStream]) -> None:
        """Have those streams work by themselves, behind the others.

        The thread may have looked in vain meanwhile, and whoever takes this turn may leave after it: so it is woken.
        """
        self.working.extend(streams)
        self.wake.notify()

    def _go_on(self, stream: PoolStream) -> None:
        if stream.requests:
            self._idle[stream.row] = False
            self._schedule(stream)
            self.wake.notify()  # as in work_later
        else:
            self._idle[stream.row] = True

    def _schedule(self, stream: PoolStream) -> None:
        """Put a stream where the first of its requests belongs."""
        if isinstance(stream.requests[0], Step) and stream.direct:
            self._begin()
            self.ready[stream] = None
        else:
            self.working.append(stream)

    def _begin(self) -> None:
        if not self.ready and not self.groups:
            self.since_s = time.monotonic()

    def wait_for_others(self, wait_s: float, streams: Callable[[], int]) -> None:
        """Wait until every stream has a step, or the first has waited for ``wait_s``."""
        while self.steps and not (self.working or self.calls or self.closed):
            left_s = self.since_s + wait_s - time.monotonic()
            if left_s <= 0 or self.steps >= streams():
                return
            self.more.wait(left_s)

    def refuse(self, contract: Contract) -> None:
        """Tell everyone who waits that the pool is closed."""
        error = closed_error()
        for _, future in self.calls:
            fail(future, error)
        streams = [*self.split(self.groups), *self.ready, *self.working]
        for stream in streams:
            refuse(list(stream.requests), contract, error)
            stream.requests.clear()
        for waiting in (self.calls, self.groups, self.ready, self.working):
            waiting.clear()  # type: ignore[attr-defined]


def closed_error() -> EdgememError:
    """The error for a call of a pool that was closed."""
    return EdgememError("the pool is closed.", hint="Open another one: session.pool().")
