"""Beginnings that many texts share: the state behind one is computed once, kept by its hash, and restored."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract
from edgemem.errors import EdgememError, SnapshotError
from edgemem.files import write_atomic

MOST_BYTES = 1 << 30
_SUFFIX = ".prefix"


class PrefixStream(Protocol):
    """The calls of :class:`edgemem.Stream` that :class:`Prefixes` makes. A pool's stream has them too."""

    def feed(self, x: Any, outputs: Literal["none"]) -> Any:
        """See :meth:`edgemem.Stream.feed`."""

    def reset(self) -> None:
        """See :meth:`edgemem.Stream.reset`."""

    def snapshot(self, note: str = "") -> bytes:
        """See :meth:`edgemem.Stream.snapshot`."""

    def restore(self, source: bytes | str | Path) -> str:
        """See :meth:`edgemem.Stream.restore`."""


class PrefixSession(Protocol):
    """What :class:`Prefixes` must know of a session, since the bits of a state depend on it."""

    @property
    def contract(self) -> Contract:
        """The model's contract."""

    @property
    def fingerprint(self) -> str:
        """Identity of the model."""

    @property
    def runtime(self) -> str:
        """Name of the runtime."""

    @property
    def device(self) -> str:
        """Where it runs."""


@dataclass(frozen=True)
class PrefixRead:
    """How a stream read a prefix.

    Attributes:
        tokens: Tokens that it has read: all of them, or 0 if it was stopped.
        restored: Whether their state was kept, so that nothing was computed.
        seconds: How long it took.
        problem: Why the state was not restored or not kept, where that is not as it should be.
    """

    tokens: int
    restored: bool
    seconds: float
    problem: str = ""


class Prefixes:
    """The states behind prefixes of one session's model, in files.

    Args:
        session: The session. Another model, runtime or device has states of its own.
        folder: Where the files are; the least recently used are removed if they need more than ``most_bytes``.
            ``None``: nothing is kept, and every prefix is computed.
        most_bytes: Most bytes of all files.
    """

    def __init__(self, session: PrefixSession, folder: Path | None = None, most_bytes: int = MOST_BYTES) -> None:
        self._session, self._folder, self._most_bytes = session, folder, most_bytes

    def key(self, tokens: NDArray[np.int64]) -> str:
        """The hash of tokens ``[N]`` and of what computes their state, in hexadecimal."""
        facts = [self._session.fingerprint, self._session.runtime, self._session.device]
        return hashlib.sha256(json.dumps(facts).encode() + np.ascontiguousarray(tokens, "<i8").tobytes()).hexdigest()

    def read(
        self, stream: PrefixStream, tokens: NDArray[np.int64], stop: Callable[[], bool] = lambda: False
    ) -> PrefixRead:
        """Bring a stream from its start to behind a prefix.

        Args:
            stream: At position 0. A restored stream is bit-equal to one that computed the prefix.
            tokens: The prefix, int64 ``[N]``; 1 or more.
            stop: Called before each chunk; ``True`` puts the stream back to its start.

        Raises:
            InputError: A token is outside the vocabulary.
            EdgememError: The engine fails.
        """
        began, key = time.perf_counter(), self.key(tokens)
        path = None if self._folder is None else self._folder / (key + _SUFFIX)
        problem = ""
        if path is not None and path.exists():
            problem = self._restore(stream, path, key)
            if not problem:
                return PrefixRead(len(tokens), True, time.perf_counter() - began)
        for start in range(0, len(tokens), size := self._session.contract.max_chunk):
            if stop():
                stream.reset()
                return PrefixRead(0, False, time.perf_counter() - began)
            stream.feed(tokens[start : start + size], "none")
        if path is not None:
            problem = self._keep(stream, path, key) or problem
        return PrefixRead(len(tokens), False, time.perf_counter() - began, problem)

    def _restore(self, stream: PrefixStream, path: Path, key: str) -> str:
        """Restore a file; the problem if it cannot be."""
        try:
            if stream.restore(path) == key:
                with contextlib.suppress(OSError):
                    path.touch()  # it was used
                return ""
            stream.reset()
            reason = "it is the state of another prefix."
        except SnapshotError as error:
            reason = error.message
        return f"{path} was computed again: {reason}"

    def _keep(self, stream: PrefixStream, path: Path, key: str) -> str:
        """Write a file, and make room for it; the problem if it cannot be."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(path, stream.snapshot(key))
            others = [(found.stat(), found) for found in path.parent.glob(f"*{_SUFFIX}") if found != path]
            room = self._most_bytes - path.stat().st_size
            for facts, found in sorted(others, key=lambda other: other[0].st_mtime, reverse=True):
                room -= facts.st_size
                if room < 0:
                    found.unlink(missing_ok=True)
        except (EdgememError, OSError) as error:
            return f"the state of the prefix was not kept: {str(error).splitlines()[0]}"
        return ""
