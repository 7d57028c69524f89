"""Files that are never half written, and paths that stay inside their folder."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path, PurePosixPath

from edgemem.errors import BundleError, EdgememError
from edgemem.leftovers import REPLACED, beside, claimed, remove, temporary

_HASH_BLOCK_BYTES = 1 << 20
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
_FEW_FILES = 3
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def cache_folder(name: str) -> Path:
    """``$XDG_CACHE_HOME/edgemem/NAME``, or ``~/.cache/edgemem/NAME``: it may be deleted at any time."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "edgemem" / name


def open_file(path: Path, most_bytes: int | None = None) -> FileIO:
    """Open a regular file for reading, unbuffered. A FIFO or a device is refused at once instead of waited for.

    Raises:
        OSError: It cannot be opened, is not a regular file, or is larger than ``most_bytes``.
    """
    file = FileIO(path, opener=lambda name, _: os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    found = os.fstat(file.fileno())
    problem = ""
    if not stat.S_ISREG(found.st_mode):
        problem = f"it is {_KINDS.get(stat.S_IFMT(found.st_mode), 'a device')}, wanted a file"
    elif most_bytes is not None and found.st_size > most_bytes:
        problem = f"it has {found.st_size:,} bytes, at most {most_bytes:,} are allowed"
    if problem:
        file.close()
        raise OSError(problem)
    return file


def read_file(path: Path, most_bytes: int) -> bytes:
    """What a regular file of at most ``most_bytes`` holds.

    Raises:
        OSError: As :func:`open_file`.
    """
    with open_file(path, most_bytes) as file:
        return file.readall()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open_file(path) as file:
        return hash_of(file)


def hash_of(file: FileIO, copy: Path | None = None) -> str:
    """SHA-256 of an open file's content from its beginning, in hexadecimal; what was hashed is written to ``copy``.

    Raises:
        OSError: It cannot be read, or the copy cannot be written.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(_HASH_BLOCK_BYTES))
    file.seek(0)
    with contextlib.nullcontext() if copy is None else copy.open("wb", buffering=0) as copied:
        while size := file.readinto(block):
            digest.update(block[:size])
            rest = block[:size]
            while copied is not None and rest:
                rest = rest[copied.write(rest) :]
    return digest.hexdigest()


def inside(folder: Path, name: str) -> Path:
    """The path of ``name`` in ``folder``.

    Raises:
        BundleError: ``name`` is absolute, leads out of ``folder``, for example through a symbolic link, or is no name.
    """
    pure = PurePosixPath(name)
    path = folder / pure
    leaves = pure.is_absolute() or ".." in pure.parts or "\0" in name
    try:
        leaves = leaves or not path.resolve().is_relative_to(folder.resolve())
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a loop of links
        raise BundleError(f"the file name {name!r} in {folder} cannot be used: {error}.") from error
    if leaves:
        raise BundleError(f"the file name {name!r} leaves its folder {folder}.", hint="Do not use this bundle.")
    return path


def link_or_copy(source: Path, target: Path) -> None:
    """A second name of a file that is written no more; a copy where the file system has no links.

    Raises:
        OSError: ``target`` cannot be written.
    """
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_replaceable(path: Path) -> None:
    """Refuse a path at which there is something that writing a file would break.

    Raises:
        EdgememError: There is a folder, a link, a device, a FIFO or a socket, or it cannot be looked at.
    """
    with _reporting(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        mode = os.lstat(path).st_mode
        if not stat.S_ISREG(mode):
            raise EdgememError(
                f"cannot write {path}: it is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, wanted a file.",
                hint="Name a file, or a name that is free.",
            )


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``. Readers see the old content or the new content, never a part.

    Raises:
        EdgememError: As :func:`replace_file`.
    """
    with replace_file(path) as handle:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[int]:
    """The descriptor of a new file to write. It replaces ``path`` when the block ends without an error.

    An existing file keeps its permissions.

    Raises:
        EdgememError: There is something else than a file, the folder is missing or not writable, or the disk is full.
            What was there is unchanged.
    """
    check_replaceable(path)
    with _reporting(path):
        mode = _mode(path)
        with temporary(path, 0o666 if mode is None else 0o600) as (new, handle):
            if mode is not None:
                os.fchmod(handle, mode)
            yield handle
            os.fsync(handle)
            os.replace(new, path)
            sync_folder(path.parent)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill. It replaces ``path`` when the block ends without an error.

    Until then, and after any error, ``path`` is unchanged; SIGTERM ends the block too. If the process is killed,
    ``path`` is the old folder or the new one. (A file system that cannot exchange two folders may be left without
    either, until :func:`~edgemem.leftovers.recover` puts the old one back.) Files and folders keep their permissions.

    Raises:
        EdgememError: The parent folder cannot be written, or the disk is full.
    """
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    with _reporting(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _ended_by_sigterm(), temporary(target, 0o777, folder=True) as (new, handle):
            yield new
            _settle(new, handle, target)
            _swap(new, target)
            sync_folder(target.parent)


def _settle(new: Path, handle: int, old: Path) -> None:
    """Give everything in a new folder the permissions that it had, and write it to the disk."""
    usual = os.fstat(handle).st_mode & 0o666
    for place in new.rglob("*"):
        if place.is_symlink():
            continue
        opened = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if place.is_file():
                kept = _mode(old / place.relative_to(new))
                os.fchmod(opened, usual if kept is None else kept)
            os.fsync(opened)
        finally:
            os.close(opened)
    if (kept := _mode(old, stat.S_ISDIR)) is not None:
        os.fchmod(handle, kept)
    os.fsync(handle)


def _mode(path: Path, is_kind: Callable[[int], bool] = stat.S_ISREG) -> int | None:
    """The permissions of a file; ``None`` where there is none."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return None
    return stat.S_IMODE(mode) if is_kind(mode) else None


def _swap(new: Path, path: Path) -> None:
    """Put a new folder in the place of ``path``; what was there is removed, or stays under a temporary name."""
    if not os.path.lexists(path):
        os.rename(new, path)
    elif not _exchange(new, path):
        old = beside(path, REPLACED)
        with claimed(path):
            try:
                os.rename(path, old)
                os.rename(new, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    if not os.path.lexists(path):
                        os.rename(old, path)
                raise
            remove(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places at once (Linux); whether the file system could."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)


def sync_files(paths: Sequence[Path]) -> None:
    """Write what files hold to the disk: many of one file system at once, where the system can (Linux).

    A file that is gone is left out.

    Raises:
        OSError: The disk does not take it.
    """
    try:
        many = ctypes.CDLL(None, use_errno=True).syncfs if len(paths) > _FEW_FILES else None
    except (OSError, AttributeError):
        many = None
    for path in paths:
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if many is not None and many(handle) == 0:
                return
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, where its file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def _reporting(path: Path) -> Iterator[None]:
    """Make an EdgememError of every OSError."""
    try:
        yield
    except OSError as error:
        raise EdgememError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise SystemExit, so that what must be removed is; only where nobody else handles it."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
