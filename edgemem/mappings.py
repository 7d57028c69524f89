"""The memory mappings of this process (Linux), and advice to the kernel about them."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemem.errors import EdgememError

_MAPS = Path("/proc/self/maps")
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class Mapping:
    """A range of addresses.

    Attributes:
        start: First address.
        end: Address after the last one.
        access: Such as ``"rw-p"``: read, write, execute, private or shared.
        has_file: Whether a file is mapped there.
        name: The file, or a name that the kernel gives, such as ``"[heap]"``; empty for most memory.
    """

    start: int
    end: int
    access: str
    has_file: bool
    name: str


def mappings() -> list[Mapping]:
    """All mappings in order of address; empty if the system does not report them."""
    if not sys.platform.startswith("linux"):
        return []
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        found.append(Mapping(start, end, access, inode != "0", name[0] if name else ""))
    return found


def make_private(folder: Path, *, steady: bool) -> bool:
    """Move the content of files in ``folder`` that are mapped for reading into memory of this process, where it stays.

    A mapped file changes under its readers when somebody writes to it, and ends them (SIGBUS) when it is cut short.
    The addresses stay the same.

    Args:
        folder: Which files.
        steady: Whether nobody can write to them now. Else they are read by way of the kernel, which takes longer and
            survives that a file is cut short meanwhile.

    Returns:
        Whether all were whole. What was not stays mapped.

    Raises:
        EdgememError: There is no memory for them.
    """
    within, whole = f"{os.path.realpath(folder)}/", True
    for mapping in mappings():
        if mapping.has_file and mapping.access in ("r--p", "rw-p") and mapping.name.startswith(within):
            whole = _replace(mapping, _copy if steady else _copy_by_the_kernel) and whole
    return whole


def _copy(to: int, start: int, size: int) -> bool:
    ctypes.memmove(to, start, size)
    return True


class _Range(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("start", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _copy_by_the_kernel(to: int, start: int, size: int) -> bool:
    """Copy memory that may be gone; whether all of it was there."""
    read = ctypes.CDLL(None, use_errno=True).process_vm_readv
    read.restype, done = ctypes.c_ssize_t, 0
    while done < size:
        ranges = [ctypes.byref(_Range(at + done, size - done)) for at in (to, start)]
        got = read(os.getpid(), ranges[0], ctypes.c_ulong(1), ranges[1], ctypes.c_ulong(1), ctypes.c_ulong(0))
        if got < 0 and ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):  # as in some containers
            return _copy(to + done, start + done, size - done)
        if got <= 0:
            return False
        done += got
    return True


def _replace(mapping: Mapping, copy_to: Callable[[int, int, int], bool]) -> bool:
    """Put anonymous memory with the same content in the place of a mapping, at once for all threads.

    Returns:
        Whether the content could be read; else nothing was done.
    """
    libc, size = ctypes.CDLL(None, use_errno=True), mapping.end - mapping.start
    place, length, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = libc.mremap.restype = place
    libc.mmap.argtypes = (place, length, number, number, number, ctypes.c_long)
    libc.mremap.argtypes = (place, length, length, number, place)
    access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    copy = libc.mmap(None, size, access, kind, -1, 0)
    if copy != _FAILED:
        if not copy_to(copy, mapping.start, size):
            libc.munmap(place(copy), length(size))
            return False
        copy = libc.mremap(copy, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, mapping.start)
    if copy == _FAILED:
        problem = os.strerror(ctypes.get_errno())
        raise EdgememError(f"{size:,} bytes of {mapping.name} cannot be copied into memory: {problem}.")
    return True


def adviser(advice: int) -> Callable[[int, int], bool] | None:
    """``madvise(address, size)`` with one advice, which returns whether it worked; ``None`` without such a call."""
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    return lambda address, size: madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice) == 0
