"""Give back the memory of weights that a mapped file can provide again (Linux)."""

from __future__ import annotations

import bisect
import mmap
import sys
from typing import TYPE_CHECKING

from edgemem.mappings import adviser, mappings

if TYPE_CHECKING:
    from torch import nn

_MADV_PAGEOUT = 21  # Linux 5.4; an older kernel returns EINVAL and nothing changes


def page_out(module: nn.Module) -> int:
    """Give back the memory of a module's tensors that lie in a mapped file. The kernel reads them again when used.

    Loading a checkpoint maps its file and copies nothing. From the first use on, the pages count as memory of the
    process.

    Returns:
        The bytes given back; 0 if the system does not support it.
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
