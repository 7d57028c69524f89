"""Ctrl-C that lets the step in hand finish, so that the state it leaves is whole."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Holds Ctrl-C (SIGINT) and SIGTERM back until :meth:`check` is called, as a context manager.

    The first signal is remembered and raised as :class:`KeyboardInterrupt` by the next :meth:`check`, which stands
    between two steps. A second one is raised at once: the state may then be torn, and :attr:`forced` says so.
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

    @property
    def came(self) -> bool:
        """Whether a signal came."""
        return self.signal is not None

    def check(self) -> None:
        """Raise :class:`KeyboardInterrupt` if a signal came."""
        if self.signal is not None:
            raise KeyboardInterrupt

    def clear(self) -> None:
        """Forget the signal, where what it was to end has ended."""
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

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers; elsewhere signals are the caller's.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # A signal that our parent had us ignore (nohup, a background job) stays ignored.
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
