"""Limits on the time and the memory that Python code of a stranger, such as a chat template, may take."""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Iterator

from edgemem.machine.memory import resident_bytes

_LOOK_EVERY_S = 0.01


class LimitError(Exception):
    """A limit was passed."""


class TimeLimitError(LimitError):
    """The time is over."""


class MemoryLimitError(LimitError):
    """The process has grown by more than it may."""


@contextlib.contextmanager
def limited(seconds: float, grown_bytes: int) -> Iterator[None]:
    """Let the block raise a :class:`LimitError` after so much time or growth, in whatever thread it runs.

    A call into C that does not return is not interrupted, and what it takes before the next look is not bounded. The
    growth is the whole process's resident memory: leave room for what other threads may take meanwhile.
    """
    thread, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), threading.Event()
    raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc
    before, end = resident_bytes(), time.monotonic() + seconds

    def watch() -> None:
        passed: type[LimitError] | None = None
        while passed is None and not over.wait(max(0.0, min(_LOOK_EVERY_S, end - time.monotonic()))):
            if time.monotonic() >= end:
                passed = TimeLimitError
            elif resident_bytes() - before > grown_bytes:
                passed = MemoryLimitError
        with lock:
            if passed is not None and not over.is_set():
                raise_in_thread(thread, ctypes.py_object(passed))

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        with lock:
            over.set()
            raise_in_thread(thread, None)  # what was set and has not been raised yet
