"""Code of a stranger ends in time, and before it has filled the memory."""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from edgemem.text.limits import MemoryLimitError, TimeLimitError, limited

LARGE = 1 << 40


def spin() -> None:
    while True:
        pass


def test_an_endless_loop_ends() -> None:
    begin = time.monotonic()
    with pytest.raises(TimeLimitError), limited(0.02, LARGE):
        spin()
    assert time.monotonic() - begin < 5


def test_what_grows_without_end_is_stopped() -> None:
    kept: list[bytes] = []

    def grow() -> None:
        while True:
            kept.append(bytes(bytearray(b"x" * (1 << 20))))

    with pytest.raises(MemoryLimitError), limited(60, 32 << 20):
        grow()
    assert len(kept) < 2_000  # a megabyte each: the watching thread looks every 10 ms, when it gets a processor


def test_what_ends_in_time_is_not_disturbed() -> None:
    with limited(10, LARGE):
        pass


def test_nothing_is_raised_after_the_block() -> None:
    for _ in range(50):
        with contextlib.suppress(TimeLimitError), limited(0.0005, LARGE):
            pass
        time.sleep(0.001)


def test_the_thread_that_runs_the_block_is_ended() -> None:
    ended = []

    def work() -> None:
        with pytest.raises(TimeLimitError), limited(0.02, LARGE):
            spin()
        ended.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(5)
    assert ended == [True]
