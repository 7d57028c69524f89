"""Weights that are not needed for a while need not stay in memory (Linux)."""

from __future__ import annotations

import bisect
import mmap
import sys

from torch import nn

from edgemem.runtimes.mappings import adviser, mappings

_MADV_PAGEOUT = 21  # Linux 5.4; older kernels answer EINVAL and nothing is lost


def page_out(module: nn.Module) -> int:
    """Give back the memory of a module's tensors that a mapped file holds; they are read from it again when used.

    A checkpoint is mapped, not copied, when it is loaded: its pages count as the process' memory from the first use to
    the end.

    Returns:
        The bytes that were given back; 0 where the system does not do it.
    """
    files = [(mapping.start, mapping.end) for mapping in mappings() if mapping.has_file]
    give_back = adviser(_MADV_PAGEOUT)
    if not files or give_back is None:
        return 0
    given_back = 0
    for tensor in module.state_dict().values():
        address = tensor.data_ptr()
        region = bisect.bisect_right(files, (address, sys.maxsize)) - 1
        if tensor.device.type != "cpu" or region < 0 or address >= files[region][1]:
            continue
        first = address + -address % mmap.PAGESIZE
        size = max(0, address + tensor.nbytes - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if size and give_back(first, size):
            given_back += size
    return given_back
