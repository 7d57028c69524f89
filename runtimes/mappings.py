"""What is mapped where in this process (Linux), and advice to the kernel about it."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class Mapping:
    """A range of addresses.

    Attributes:
        start: Its first byte.
        end: Behind its last one.
        access: As ``"rw-p"``: read, write, execute, private or shared.
        has_file: Whether a file is mapped there.
        name: The file, or the kernel's name for it as ``"[heap]"``; empty for most memory.
    """

    start: int
    end: int
    access: str
    has_file: bool
    name: str


def mappings() -> list[Mapping]:
    """All of them, in order; none where the system does not tell."""
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


def adviser(advice: int) -> Callable[[int, int], bool] | None:
    """``madvise(address, size)`` with one advice, which says whether it was taken; ``None``: there is no such call."""
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    return lambda address, size: madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice) == 0
