"""Memory of the machine and of its processes, as the kernel counts it, in bytes."""

from __future__ import annotations

import ctypes
import platform
import resource

from edgemem.machine.kernel import entry_bytes, read

_M_MMAP_THRESHOLD = -3


def total_bytes() -> int:
    """Memory of the machine; 0 if the system does not report it."""
    return entry_bytes("/proc/meminfo", "MemTotal")


def available_bytes() -> int | None:
    """Memory that can be allocated without swapping; ``None`` if the system does not report it."""
    return entry_bytes("/proc/meminfo", "MemAvailable") or None


def resident_bytes() -> int:
    """Memory of this process that is resident now."""
    statm = read("/proc/self/statm")
    if statm is None:
        return peak_bytes()
    return int(statm.split()[1]) * resource.getpagesize()


def peak_bytes() -> int:
    """The most memory that was ever resident in this process.

    Reads ``VmHWM`` where it exists. ``ru_maxrss`` also includes the process that started this one, before ``exec``.
    """
    if peak := status_bytes("VmHWM"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def status_bytes(key: str, process: int | str = "self") -> int:
    """An entry of ``/proc/<process>/status``, such as ``"VmHWM"``; 0 if it is missing."""
    return entry_bytes(f"/proc/{process}/status", key)


def map_large_blocks() -> bool:
    """Map every block of 128 KiB or more by itself, so that freeing it gives it back; whether that works (glibc).

    By default glibc raises this limit to the largest block that was freed. Such blocks then leave holes in its heap.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 128 << 10))


def give_back_free_memory() -> bool:
    """Give memory that was freed back to the system; whether the C library does that (glibc)."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return False
    trim(0)
    return True
