"""Ctrl-C that lets the current step finish, so that the state stays complete."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import IO

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Holds Ctrl-C (SIGINT) and SIGTERM back until :meth:`check` is called, as a context manager.

    The first signal is remembered, and the next :meth:`check`, which is called between two steps, raises it as
    :class:`KeyboardInterrupt`. A second signal is raised at once: the state may then be incomplete, and
    :attr:`forced` is set.

    Attributes:
        signal: The signal that was received last; ``None`` if there was none.
        forced: Whether a second signal interrupted a step.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.forced = False
        self._waiting = False
        self._before: dict[int, signal._HANDLER] = {}

    @property
    def exit_code(self) -> int:
        """The exit code that a shell gives to the signal: 130 for Ctrl-C."""
        return 128 + (self.signal or signal.SIGINT)

    def check(self) -> None:
        """Raise :class:`KeyboardInterrupt` if there was a signal."""
        if self.signal is not None:
            raise KeyboardInterrupt

    def clear(self) -> None:
        """Forget the signal, once what it was meant to end has ended."""
        self.signal, self.forced = None, False

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A block that a signal may end at once, such as waiting for a line of input."""
        self._waiting = True
        try:
            self.check()
            yield
        finally:
            self._waiting = False

    def lines(self, file: IO[bytes]) -> Iterator[bytes]:
        """The lines of a file or a pipe, each as soon as it is there; a signal ends the wait for one."""
        while True:
            with self.waiting():
                line = file.readline()
            if not line:
                return
            yield line

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers. In another thread, signals are left to the caller.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # A signal that our parent made us ignore (nohup, a background job) stays ignored.
                if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.forced = self.signal is not None and not self._waiting
        self.signal = number
        if self.forced or self._waiting:
            raise KeyboardInterrupt
