"""The memory mappings of this process (Linux), and advice to the kernel about them."""

from __future__ import annotations

import ctypes
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


def make_private(folder: Path) -> None:
    """Move the content of files in ``folder`` that are mapped for reading into memory of this process, where it stays.

    A mapped file changes under its readers when somebody writes to it, and ends them (SIGBUS) when it is cut short: so
    nobody may write to these files until this returns. The addresses stay the same.

    Raises:
        EdgememError: There is no memory for them.
    """
    within = f"{os.path.realpath(folder)}/"
    for mapping in mappings():
        if mapping.has_file and mapping.access in ("r--p", "rw-p") and mapping.name.startswith(within):
            _replace(mapping)


def _replace(mapping: Mapping) -> None:
    """Put anonymous memory with the same content in the place of a mapping, at once for all threads."""
    libc, size = ctypes.CDLL(None, use_errno=True), mapping.end - mapping.start
    place, length, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = libc.mremap.restype = place
    libc.mmap.argtypes = (place, length, number, number, number, ctypes.c_long)
    libc.mremap.argtypes = (place, length, length, number, place)
    access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    copy = libc.mmap(None, size, access, kind, -1, 0)
    if copy != _FAILED:
        ctypes.memmove(copy, mapping.start, size)
        copy = libc.mremap(copy, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, mapping.start)
    if copy == _FAILED:
        problem = os.strerror(ctypes.get_errno())
        raise EdgememError(f"{size:,} bytes of {mapping.name} cannot be copied into memory: {problem}.")


def adviser(advice: int) -> Callable[[int, int], bool] | None:
    """``madvise(address, size)`` with one advice, which returns whether it worked; ``None`` without such a call."""
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    return lambda address, size: madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice) == 0
