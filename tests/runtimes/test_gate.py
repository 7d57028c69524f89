"""Many pass a gate at a time, or one is alone behind it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from edgemem.runtimes.gate import Gate


def test_two_threads_are_inside_at_a_time() -> None:
    gate, both = Gate(), threading.Barrier(2, timeout=10)

    def enter() -> None:
        with gate:
            both.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: enter(), range(2)))


def test_who_is_alone_sees_nobody_inside() -> None:
    gate, inside, seen = Gate(), set[int](), list[int]()

    def enter(me: int) -> None:
        for turn in range(300):
            if turn % 10 == me:
                with gate.alone():
                    seen.append(len(inside))
                    with gate:  # passes its own gate
                        pass
            else:
                with gate:
                    inside.add(me)
                    inside.discard(me)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(enter, range(4)))
    assert seen == [0] * 120


def test_one_who_is_alone_may_be_alone_again() -> None:
    gate = Gate()
    with gate.alone(), gate.alone(), gate:
        pass
    with gate:
        pass


def test_an_error_opens_the_gate() -> None:
    gate = Gate()
    with pytest.raises(KeyError), gate.alone():
        raise KeyError
    with pytest.raises(KeyError), gate:
        raise KeyError
    with gate.alone():
        pass
