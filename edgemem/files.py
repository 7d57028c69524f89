"""Files that are never half written, and paths that stay inside their folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from io import FileIO
from pathlib import Path, PurePosixPath

from edgemem.errors import BundleError, EdgememError

_HASH_BLOCK_BYTES = 1 << 20
_KINDS = {stat.S_IFIFO: "a FIFO", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755  # temporary files are created readable only by their owner


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


def hash_of(file: FileIO) -> str:
    """SHA-256 of an open file's content from its beginning, in hexadecimal."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_HASH_BLOCK_BYTES))
    file.seek(0)
    while size := file.readinto(block):
        digest.update(block[:size])
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


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``. Readers see the old content or the new content, never a part.

    Raises:
        EdgememError: The folder is missing or not writable, or the disk is full. The old file is unchanged.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), _FILE_MODE)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise EdgememError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def _swap(path: Path, new: Path) -> None:
    """Replace ``path`` by ``new``. The old content is never lost, even if Ctrl-C interrupts this."""
    old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
    try:
        os.rename(path, old / path.name)
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):  # there is nothing to put back, or the new folder is already there
            os.rename(old / path.name, path)
        with contextlib.suppress(OSError):
            old.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill. It replaces ``path`` when the block ends without an error.

    Until then, and after any error, ``path`` is unchanged.

    Raises:
        EdgememError: The parent folder cannot be written, or the disk is full.
    """
    new: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        new.chmod(_FOLDER_MODE)
        yield new
        for file in new.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fchmod(handle.fileno(), _FILE_MODE)
                    os.fsync(handle.fileno())
        if path.exists():
            _swap(path, new)
        else:
            os.rename(new, path)
    except OSError as error:
        raise EdgememError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
