"""Code of a stranger ends in time."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from edgemem.text.time_limit import TimeLimitError, time_limit


def spin() -> None:
    while True:
        pass


def test_an_endless_loop_ends() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeLimitError), time_limit(0.02):
        spin()
    assert time.monotonic() - begin < 5


def test_what_ends_in_time_is_not_disturbed() -> None:
    with time_limit(10):
        pass


def test_nothing_is_raised_after_the_block() -> None:
    for _ in range(50):
        with contextlib.suppress(TimeLimitError), time_limit(0.0005):
            pass
        time.sleep(0.001)


def test_the_thread_that_runs_the_block_is_ended() -> None:
    ended = []

    def work() -> None:
        with pytest.raises(TimeLimitError), time_limit(0.02):
            spin()
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert ended == [True]
