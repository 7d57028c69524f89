"""Files that are as they were hashed when they are loaded, though an engine opens them again by their names.

Where the kernel keeps writers out of them, they are loaded from where they lie; elsewhere from a copy of our own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from edgemem.leftovers import temporary

_F_SETSIG = 10
_TICK_NS = 20_000_000  # two changes within a tick of the kernel's clock may leave the same times


@dataclass(frozen=True)
class Stamp:
    """What the file system knows about a file. Writing to it, renaming it and replacing it all change this."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, file: int | Path) -> Stamp:
        """The stamp of a file, by its descriptor or its path.

        Raises:
            OSError: There is no such file.
        """
        found = os.stat(file)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    def is_of(self, path: Path) -> bool:
        """Whether this is still the stamp of the file at ``path``."""
        try:
            return Stamp.of(path) == self
        except OSError:
            return False

    @property
    def is_settled(self) -> bool:
        """Whether another change would give another stamp: the last one is more than a tick of the clock ago."""
        return abs(time.time_ns() - self.changed_ns) > _TICK_NS


@contextlib.contextmanager
def fixed_folder(folder: Path) -> Iterator[Path]:
    """A path that leads to this very folder, whatever is renamed; ``folder`` itself where the system has none."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fixed = Path(f"/proc/self/fd/{handle}")
        yield fixed if fixed.exists() else folder
    finally:
        os.close(handle)


def keep_writers_out(file: FileIO) -> bool:
    """Let whoever wants to write to an open file wait until it is closed; whether the kernel granted such a lease.

    It does so on Linux for files of this user on local file systems that nobody has open for writing.
    """
    try:
        fcntl.fcntl(file, _F_SETSIG, signal.SIGURG)  # nobody listens to it; the default signal would end the process
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except (OSError, AttributeError):
        return False
    return True


@contextlib.contextmanager
def private_folder(size_bytes: int) -> Iterator[Path]:
    """An empty folder for so many bytes, which nobody else writes to; removed at the end.

    It lies where temporary files go (``TMPDIR``), or in memory if there is no room there. What killed processes left
    of such folders is removed by the next.

    Raises:
        OSError: There is no room in either.
    """
    places = [Path(tempfile.gettempdir()), Path("/dev/shm")]
    for place in places:
        with contextlib.suppress(OSError):
            if shutil.disk_usage(place).free > size_bytes:
                break
    else:
        raise OSError(f"{size_bytes:,} bytes are not free in {' or '.join(map(str, places))}")
    with temporary(place / "edgemem", 0o700, folder=True) as (folder, _):
        yield folder
