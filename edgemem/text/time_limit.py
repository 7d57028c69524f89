"""A limit on the time that Python code of a stranger, such as a chat template, may take."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator


class TimeLimitError(Exception):
    """The time is over."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let the block raise :class:`TimeLimitError` after so many seconds, in whatever thread it runs.

    A call into C that does not return is not interrupted.
    """
    thread, lock, over = ctypes.c_ulong(threading.get_ident()), threading.Lock(), threading.Event()
    raise_in_thread = ctypes.pythonapi.PyThreadState_SetAsyncExc

    def end() -> None:
        with lock:
            if not over.is_set():
                raise_in_thread(thread, ctypes.py_object(TimeLimitError))

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            over.set()
            raise_in_thread(thread, None)  # what was set and has not been raised yet
