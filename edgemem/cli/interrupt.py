"""Ctrl-C that lets the current step finish, so that the state stays complete."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import IO

from edgemem.cli.stuck import StuckWatch
from edgemem.errors import InputError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BLOCK_BYTES = 1 << 12  # what a signal may leave read but not answered
_LONGEST_LINE_BYTES = 1 << 24
_LONGEST_WAIT_S = 1.0  # Python sees a signal from just before a wait only after it


class Interrupt:
    """Holds Ctrl-C (SIGINT), SIGTERM and SIGHUP back until :meth:`check` is called, as a context manager.

    The first signal is remembered, and the next :meth:`check`, which is called between two steps, raises it as
    :class:`KeyboardInterrupt`. Ctrl-C after it is raised at once: the state may then be incomplete, and :attr:`forced`
    is set. It ends the process if the step does not end. The others may come twice by themselves, from the kernel and
    from a shell, say, and change nothing then.

    Attributes:
        signal: The signal that was received last; ``None`` if there was none.
        forced: Whether Ctrl-C, after another signal, interrupted a step.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.forced = False
        self._waiting = False
        self._before: dict[int, signal._HANDLER] = {}
        self._watch: StuckWatch | None = None

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

    def blocks(self, file: IO[bytes], name: str, idle: Callable[[], float] = lambda: math.inf) -> Iterator[bytes]:
        """What a file or a pipe gives, as soon as it is there; a signal ends the wait, and loses nothing.

        Args:
            file: Nothing else may read it.
            name: What messages call it.
            idle: Called between two reads, and once a second while nothing arrives, or after the seconds it returns.

        Raises:
            InputError: It cannot be read.
        """
        try:
            handle = file.fileno()
        except (OSError, AttributeError):  # not a file of the system
            while block := file.read(_BLOCK_BYTES):
                yield block
            return
        waiting = select.poll()
        waiting.register(handle, select.POLLIN)
        while True:
            wait_s = min(idle(), _LONGEST_WAIT_S)
            with self.waiting():
                is_ready = waiting.poll(math.ceil(wait_s * 1e3))
            if not is_ready:
                continue
            try:
                block = os.read(handle, _BLOCK_BYTES)
            except OSError as error:
                raise InputError(f"{name} cannot be read: {error.strerror or error}") from error
            if not block:
                return
            yield block

    def lines(self, file: IO[bytes], name: str, idle: Callable[[], float] = lambda: math.inf) -> Iterator[bytes]:
        """The lines of a file or a pipe, each with its end and as soon as it is there; see :meth:`blocks`.

        Raises:
            InputError: It cannot be read, or a line is longer than 16 MiB.
        """
        begun: list[bytes] = []  # of a line whose end has not arrived
        length = 0
        for block in self.blocks(file, name, idle):
            first, *others = block.split(b"\n")
            begun.append(first)
            for other in others:
                yield b"".join(begun) + b"\n"
                begun = [other]
                length = 0
            if (length := length + len(begun[-1])) > _LONGEST_LINE_BYTES:
                raise InputError(f"{name} has a line of more than {_LONGEST_LINE_BYTES >> 20} MiB.")
        if rest := b"".join(begun):
            yield rest

    def __enter__(self) -> Interrupt:
        # Only the main thread may set handlers. In another thread, signals are left to the caller.
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # A signal that our parent made us ignore (nohup, a background job) stays ignored.
                if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._handle)
            self._watch = StuckWatch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._watch is not None:
            self._watch.answer()
        self.forced = self.forced or (number == signal.SIGINT and self.signal is not None and not self._waiting)
        self.signal = number
        if self._waiting or (self.forced and number == signal.SIGINT):
            raise KeyboardInterrupt
