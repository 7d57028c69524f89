"""A stream that two threads use at once refuses the second one, before anything is changed."""

from __future__ import annotations

import threading
import timeit
from collections.abc import Callable
from typing import Any

import pytest

from edgemem.errors import EdgememError
from edgemem.runtimes import Session, Stream
from edgemem.runtimes.exclusive import Exclusive

CALLS: list[Callable[[Stream], Any]] = [
    lambda stream: stream.step(3),
    lambda stream: stream.step_top(3),
    lambda stream: stream.feed([3, 4]),
    lambda stream: stream.finish(),
    lambda stream: stream.reset(),
    lambda stream: stream.fork(),
    lambda stream: stream.split([0]),
    lambda stream: stream.snapshot(),
    lambda stream: stream.restore(b""),
    lambda stream: stream.state(),
    lambda stream: stream.load_state({}, 0),
    lambda stream: stream.hold({}),
    lambda stream: Stream.join([stream]),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_while_another_thread_is_in_one_is_refused(session: Session, call: Callable[[Stream], Any]) -> None:
    stream = session.stream(2)
    before = stream.snapshot()
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        with stream.alone():
            inside.set()
            go_on.wait(30)

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait(30)
    try:
        with pytest.raises(EdgememError, match=r"this Stream is in use by another thread\.\n.*one thread at a time"):
            call(stream)
    finally:
        go_on.set()
        thread.join()
    assert stream.snapshot() == before
    stream.step([3, 3])


def test_two_threads_that_step_one_stream_advance_it_by_the_steps_that_were_not_refused(session: Session) -> None:
    stream, done, refused = session.stream(), [0, 0], [0, 0]

    def work(number: int) -> None:
        for _ in range(3000):
            try:
                stream.step(3)
                done[number] += 1
            except EdgememError:
                refused[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stream.position == sum(done)
    assert stream.state()["1.count.n"].tolist() == [session.stream().state()["1.count.n"][0] + sum(done)]


def test_a_call_that_fails_leaves_the_stream_free(session: Session) -> None:
    stream = session.stream()
    with pytest.raises(EdgememError):
        stream.step(-1)
    with pytest.raises(EdgememError):
        stream.feed([-1])
    free = []
    thread = threading.Thread(target=lambda: free.append(stream.step(3)))
    thread.start()
    thread.join()
    assert free


def test_taking_and_freeing_costs_less_than_a_microsecond() -> None:
    """The figure itself is measured by ``benchmarks/figures.py``; this only finds a change of order."""
    owner = Exclusive()
    take, free = owner._acquire, owner._release
    assert min(timeit.repeat(lambda: take(False) and free(), number=1000, repeat=20)) < 1e-3
