"""A gate: many threads pass it at a time, or one is alone behind it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """``with gate:`` passes it; ``with gate.alone():`` waits until nobody is inside, and keeps the others out.

    What a thread calls while it is alone passes the gate too. A thread that is inside must not pass it again.
    """

    def __init__(self) -> None:
        self._door, self._count = threading.Lock(), threading.Lock()
        self._empty = threading.Condition(self._count)
        self._inside = 0
        self._alone = 0  # the thread that is

    def __enter__(self) -> None:
        if self._alone == threading.get_ident():
            return
        with self._door, self._count:
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        if self._alone == threading.get_ident():
            return
        with self._count:
            self._inside -= 1
            if not self._inside:
                self._empty.notify()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone in the block."""
        if self._alone == threading.get_ident():
            yield
            return
        with self._door:
            with self._count:
                while self._inside:
                    self._empty.wait()
            self._alone = threading.get_ident()
            try:
                yield
            finally:
                self._alone = 0
