"""The memory mappings of this process (Linux), and advice to the kernel about them."""

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


def adviser(advice: int) -> Callable[[int, int], bool] | None:
    """``madvise(address, size)`` with one advice, which returns whether it worked; ``None`` without such a call."""
    try:
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    return lambda address, size: madvise(ctypes.c_void_p(address), ctypes.c_size_t(size), advice) == 0
