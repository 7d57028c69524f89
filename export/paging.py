"""Weights that are not needed for a while need not stay in memory (Linux)."""

from __future__ import annotations

import bisect
import ctypes
import mmap
import sys
from pathlib import Path

from torch import nn

_MADV_PAGEOUT = 21  # Linux 5.4; older kernels answer EINVAL and nothing is lost
_MAPS = Path("/proc/self/maps")


def page_out(module: nn.Module) -> int:
    """Give back the memory of a module's tensors that a mapped file holds; they are read from it again when used.

    A checkpoint is mapped, not copied, when it is loaded: its pages count as the process' memory from the first use to
    the end.

    Returns:
        The bytes that were given back; 0 where the system does not do it.
    """
    if not sys.platform.startswith("linux"):
        return 0
    try:
        mapped = _mapped_files()
        madvise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return 0
    given_back = 0
    for tensor in module.state_dict().values():
        address = tensor.data_ptr()
        region = bisect.bisect_right(mapped, (address, sys.maxsize)) - 1
        if tensor.device.type != "cpu" or region < 0 or address >= mapped[region][1]:
            continue
        first = address + -address % mmap.PAGESIZE
        size = max(0, address + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if size and madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), _MADV_PAGEOUT) == 0:
            given_back += size
    return given_back


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges that files are mapped to, in order."""
    regions = []
    for line in _MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            start, end = addresses.split("-")
            regions.append((int(start, 16), int(end, 16)))
    return regions
