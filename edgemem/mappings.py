"""The memory mappings of this process (Linux), and advice to the kernel about them."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgemem.errors import EdgememError

HUGE_BYTES = 2 << 20
_MAPS = Path("/proc/self/maps")
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MADV_HUGEPAGE = 1, 2, 14
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
    run: Mapping | None = None
    for mapping in mappings():
        if not (mapping.has_file and mapping.access in ("r--p", "rw-p") and mapping.name.startswith(within)):
            continue
        if run is not None and run.end == mapping.start:  # one after another, they can have huge pages together
            run = replace(run, end=mapping.end)
            continue
        if run is not None:
            _replace(run)
        run = mapping
    if run is not None:
        _replace(run)


def _replace(run: Mapping) -> None:
    """Put anonymous memory with the same content in the place of mappings, at once for all threads.

    It has huge pages where the system allows them: the copy is written at a place that lies like the old one within a
    page of 2 MiB, so that whole pages are moved.
    """
    libc, size = ctypes.CDLL(None, use_errno=True), run.end - run.start
    place, length, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = libc.mremap.restype = place
    libc.mmap.argtypes = (place, length, number, number, number, ctypes.c_long)
    libc.mremap.argtypes = (place, length, length, number, place)
    access, kind = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    moved = spare = libc.mmap(None, size + HUGE_BYTES, access, kind, -1, 0)
    if spare != _FAILED:
        copy = spare + (run.start - spare) % HUGE_BYTES
        libc.madvise(place(copy), length(size), _MADV_HUGEPAGE)
        ctypes.memmove(copy, run.start, size)
        moved = libc.mremap(copy, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, run.start)
        number_of_error = ctypes.get_errno()
        for start, end in ((spare, copy), (copy + (moved != _FAILED) * size, spare + size + HUGE_BYTES)):
            if end > start:
                libc.munmap(place(start), length(end - start))
        ctypes.set_errno(number_of_error)
    if moved == _FAILED:
        problem = os.strerror(ctypes.get_errno())
        raise EdgememError(f"{size:,} bytes of {run.name} cannot be copied into memory: {problem}.")


def adviser(advice: int) -> Callable[[int, int], bool] | None:
    """``madvise(address, size)`` with one advice, which returns whether it worked; ``None`` without such a call."""
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    return lambda address, size: madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice) == 0
