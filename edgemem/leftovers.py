"""Temporary files and folders beside what they are to replace, and what killed processes left of them.

The process that makes one holds a lock on it (``flock``), which the kernel releases when the process ends, however it
ends. So whatever is not locked was left over, and the next process that writes or reads there tidies it up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

TEMPORARY, REPLACED = "tmp", "old"
_PATIENCE_S = 1.0
_NAME_BYTES = 150  # of the name, so that the temporary one is not too long for the file system
_TEMPORARY_NAME = re.compile(rf"\.(?P<stem>.+)\.[0-9a-f]{{16}}\.({TEMPORARY}|{REPLACED})", re.DOTALL)
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def beside(path: Path, kind: str) -> Path:
    """A new name beside ``path``, for what is to replace it (:data:`TEMPORARY`) or was replaced (:data:`REPLACED`)."""
    return path.with_name(f".{_stem(path)}.{secrets.token_hex(8)}.{kind}")


@contextlib.contextmanager
def temporary(path: Path, mode: int, *, folder: bool = False) -> Iterator[tuple[Path, int]]:
    """A new empty file or folder beside ``path``, with an open descriptor; removed at the end if it is still there.

    Args:
        path: What it is to replace.
        mode: Its permissions, of which the umask takes away.
        folder: Make a folder.

    Raises:
        OSError: It cannot be made.
    """
    with _alone(path.parent) as alone:
        if alone:
            _tidy(path)
        new = beside(path, TEMPORARY)
        if folder:
            os.mkdir(new, mode)
        handle = os.open(new, _READ if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        _lock(handle)
    try:
        yield new, handle
    finally:
        remove(new)
        os.close(handle)


@contextlib.contextmanager
def claimed(path: Path, patience_s: float = 0) -> Iterator[bool]:
    """Hold the lock of a file or folder; whether it was free, or became so in that time."""
    try:
        handle = os.open(path, _READ)
    except OSError:
        yield False
        return
    try:
        yield _lock(handle, patience_s)
    finally:
        os.close(handle)


def recover(path: Path) -> bool:
    """Put back what was at ``path`` when a process was killed while it replaced it; whether something is there now."""
    if not os.path.lexists(path) and next(_leftovers(path), None):
        with _alone(path.parent) as alone:
            if alone:
                _tidy(path)
    return os.path.lexists(path)


def remove(path: Path) -> None:
    """Remove a file or a folder as far as possible; what is left of it is never taken for a whole one."""
    if path.suffix == f".{REPLACED}":
        with contextlib.suppress(OSError):
            path = path.rename(path.with_suffix(f".{TEMPORARY}"))
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            os.unlink(path)


def _tidy(path: Path) -> None:
    """Remove what dead processes left beside ``path``; put a folder back that one of them moved aside."""
    for left in sorted(_leftovers(path), reverse=True):
        with claimed(left) as free, contextlib.suppress(OSError):
            if free and left.suffix == f".{REPLACED}" and not os.path.lexists(path):
                os.rename(left, path)
            elif free:
                remove(left)


def _leftovers(path: Path) -> Iterator[Path]:
    """Everything beside ``path`` with a name of :func:`beside`."""
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for name in names:
        found = _TEMPORARY_NAME.fullmatch(name)
        if found and found["stem"] == _stem(path):
            yield path.parent / name


def _stem(path: Path) -> str:
    return os.fsdecode(os.fsencode(path.name)[:_NAME_BYTES])


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Keep other processes from making and tidying up in a folder, so that none sees what is not locked yet.

    Yields:
        Whether it worked: false where the folder cannot be locked, or somebody else holds the lock for long, and in a
        temporary folder, which is locked already and in which nothing is left over.
    """
    if _TEMPORARY_NAME.fullmatch(folder.name):
        yield False
        return
    with claimed(Path(os.path.realpath(folder)), _PATIENCE_S) as alone:
        yield alone


def _lock(handle: int, patience_s: float = 0) -> bool:
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(0.005)
        except OSError:
            return False
        else:
            return True
