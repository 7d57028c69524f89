"""Ctrl-C for a process whose engine is in a call that does not return.

Python runs a signal's handler only between two lines of Python, of which there are none then. But its number is
written to a pipe at once, and a thread reads it.
"""

from __future__ import annotations

import os
import signal
import threading
import time

_PATIENCE_S = 2.0
_BEFORE_S = 0.5  # a handler may have run before the thread read the signal that it is for


class StuckWatch:
    """Ends the process where a second Ctrl-C reaches no handler within 2 s. Make it in the main thread."""

    def __init__(self) -> None:
        self._answered_s = 0.0
        self._over = threading.Event()
        self._from, self._to = os.pipe()
        os.set_blocking(self._to, False)
        self._before = signal.set_wakeup_fd(self._to, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="edgemem-signals", daemon=True)
        self._thread.start()

    def answer(self) -> None:
        """Tell that a handler runs."""
        self._answered_s = time.monotonic()

    def stop(self) -> None:
        """End the watch."""
        self._over.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._to)
        self._thread.join()
        os.close(self._from)

    def _watch(self) -> None:
        count = 0
        while numbers := os.read(self._from, 64):
            asked_s = time.monotonic() - _BEFORE_S
            new = numbers.count(signal.SIGINT)
            count += new
            if new and count > 1 and not self._over.wait(_PATIENCE_S) and self._answered_s < asked_s:
                os.write(2, b"\nError: a step does not end. What was not saved is lost.\n")
                os._exit(128 + signal.SIGINT)
