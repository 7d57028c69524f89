"""One thread at a time: a stream that a second thread calls meanwhile refuses at once, before anything is changed."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from threading import RLock
from typing import Any, Concatenate, ParamSpec, TypeVar

from edgemem.errors import EdgememError

Arguments = ParamSpec("Arguments")
Owner = TypeVar("Owner", bound="Exclusive")
Result = TypeVar("Result")


class Exclusive:
    """An object that one thread may use at a time. A method may call others of the same object."""

    def __init__(self) -> None:
        lock = RLock()
        # Bound once: a step pays for both calls.
        self._acquire: Callable[[bool], bool] = lock.acquire
        self._release: Callable[[], None] = lock.release

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads out of the block.

        Raises:
            EdgememError: Another thread is in a call.
        """
        release = self._release  # a split replaces it
        if not self._acquire(False):
            raise in_use(self)
        try:
            yield
        finally:
            release()


def exclusive(
    method: Callable[Concatenate[Owner, Arguments], Result],
) -> Callable[Concatenate[Owner, Arguments], Result]:
    """A method that refuses with an :class:`EdgememError` while another thread is in a method of the same object."""

    @functools.wraps(method)
    def call(self: Owner, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with self.alone():
            return method(self, *args, **kwargs)

    return call


def in_use(owner: Any) -> EdgememError:
    """The error for a call while another thread is in one."""
    return EdgememError(
        f"this {type(owner).__name__} is in use by another thread.",
        hint="Use a stream from one thread at a time. Streams of one session may run in different threads.",
    )
