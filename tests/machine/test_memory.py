"""Memory that a process gives back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

FREED = """
import ctypes
from edgemem.machine.memory import map_large_blocks, status_bytes
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
MIB = 1 << 20
libc.free(libc.malloc(20 * MIB))  # from here on glibc puts smaller blocks into its heap
if {apart}:
    assert map_large_blocks()
blocks = [libc.malloc(MIB) for _ in range(20)]
small = libc.malloc(100)  # above them, so that the heap cannot shrink
for block in blocks:
    ctypes.memset(block, 1, MIB)
before = status_bytes("VmRSS")
for block in blocks:
    libc.free(block)
print((before - status_bytes("VmRSS")) // MIB)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone does it")
@pytest.mark.parametrize(("apart", "given_back_mib"), [(False, range(2)), (True, range(19, 22))])
def test_large_blocks_that_are_mapped_by_themselves_are_given_back_as_they_are_freed(
    apart: bool, given_back_mib: range
) -> None:
    run = subprocess.run([sys.executable, "-c", FREED.format(apart=apart)], capture_output=True, text=True, check=True)
    assert int(run.stdout) in given_back_mib
