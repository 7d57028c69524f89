"""The memory mappings of this process (Linux), and advice to the kernel about them."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from edgemem.errors import EdgememError

HUGE_BYTES = 2 << 20
_MAPS = Path("/proc/self/maps")
_MREMAP_MAYMOVE, _MREMAP_FIXED, _MADV_HUGEPAGE, _MAP_FIXED = 1, 2, 14, 16
_ACCESS = mmap.PROT_READ | mmap.PROT_WRITE
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True)
class Mapping:
    """A range of addresses.

    Attributes:
        start: First address.
        end: Address after the last one.
        access: Such as ``"rw-p"``: read, write, execute, private or shared.
        offset: Where in its file it begins.
        has_file: Whether a file is mapped there.
        name: The file, or a name that the kernel gives, such as ``"[heap]"``; empty for most memory.
    """

    start: int
    end: int
    access: str
    offset: int
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
        addresses, access, offset, _, inode, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        found.append(Mapping(start, end, access, int(offset, 16), inode != "0", name[0] if name else ""))
    return found


def make_private(folder: Path) -> None:
    """Move the content of files in ``folder`` that are mapped for reading into memory of this process, where it stays.

    A mapped file changes under its readers when somebody writes to it, and ends them (SIGBUS) when it is cut short: so
    nobody may write to these files until this returns. The addresses stay the same.

    Raises:
        EdgememError: There is no memory for them.
    """
    within = f"{os.path.realpath(folder)}/"
    found = [m for m in mappings() if m.has_file and m.access in ("r--p", "rw-p") and m.name.startswith(within)]
    places = Counter((mapping.name, mapping.offset) for mapping in found)
    several = {name for (name, _), count in places.items() if count > 1}
    for name in several:
        _share([mapping for mapping in found if mapping.name == name])
    for run in _joined([mapping for mapping in found if mapping.name not in several]):
        _replace(run)


def _libc() -> ctypes.CDLL:
    """The C library, with the types of the calls that map memory."""
    libc, place, length, number = ctypes.CDLL(None, use_errno=True), ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.restype = libc.mremap.restype = place
    libc.mmap.argtypes = (place, length, number, number, number, ctypes.c_long)
    libc.mremap.argtypes = (place, length, length, number, place)
    return libc


def _joined(found: list[Mapping]) -> list[Mapping]:
    """Mappings that lie one after another as one: they can have huge pages together."""
    runs: list[Mapping] = []
    for mapping in found:
        if runs and runs[-1].end == mapping.start:
            runs[-1] = replace(runs[-1], end=mapping.end)
        else:
            runs.append(mapping)
    return runs


def _share(found: list[Mapping]) -> None:
    """Put memory of this process in the place of the mappings of one file that is mapped several times.

    Several graphs share their weights: the content is held once, in a file without a name that nobody can write. Where
    there are no such files, every mapping gets its own copy.
    """
    libc, kind = _libc(), mmap.MAP_PRIVATE | _MAP_FIXED
    try:
        with open(os.memfd_create("weights", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "wb", buffering=0) as copy:
            for mapping in found:
                _write(copy.fileno(), mapping)
            fcntl.fcntl(copy, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
            for mapping in found:
                size = mapping.end - mapping.start
                if libc.mmap(mapping.start, size, _ACCESS, kind, copy.fileno(), mapping.offset) == _FAILED:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    except OSError:  # a kernel without such files, or one that forbids them
        for run in _joined(found):
            _replace(run)


def _write(file: int, mapping: Mapping) -> None:
    """Write what a mapping holds to its place in another file."""
    done, size = 0, mapping.end - mapping.start
    while done < size:
        rest = (ctypes.c_char * (size - done)).from_address(mapping.start + done)
        done += os.pwrite(file, rest, mapping.offset + done)


def _replace(run: Mapping) -> None:
    """Put anonymous memory with the same content in the place of mappings, at once for all threads.

    It has huge pages where the system allows them: the copy is written at a place that lies like the old one within a
    page of 2 MiB, so that whole pages are moved.
    """
    libc, size, kind = _libc(), run.end - run.start, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    moved = spare = libc.mmap(None, size + HUGE_BYTES, _ACCESS, kind, -1, 0)
    if spare != _FAILED:
        copy = spare + (run.start - spare) % HUGE_BYTES
        libc.madvise(ctypes.c_void_p(copy), ctypes.c_size_t(size), _MADV_HUGEPAGE)
        ctypes.memmove(copy, run.start, size)
        moved = libc.mremap(copy, size, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, run.start)
        number_of_error = ctypes.get_errno()
        for start, end in ((spare, copy), (copy + (moved != _FAILED) * size, spare + size + HUGE_BYTES)):
            if end > start:
                libc.munmap(ctypes.c_void_p(start), ctypes.c_size_t(end - start))
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
