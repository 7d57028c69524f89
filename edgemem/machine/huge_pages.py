"""Huge pages for the memory that an engine reads at every step (Linux).

A step reads all weights once. With pages of 4 KiB, the processor walks the page table every few hundred nanoseconds;
with pages of 2 MiB it hardly ever does. Engines allocate their packed weights with ``malloc``, which returns small
pages unless the process was started with a glibc tunable. So the pages are joined after the weights are loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from edgemem.mappings import HUGE_BYTES, adviser, mappings

_MADV_COLLAPSE = 25  # Linux 6.1; an older kernel returns EINVAL and nothing changes
_POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Region = tuple[int, int]


def anonymous_regions() -> list[Region]:
    """Address ranges of the process' private writable memory, in order; empty if the system does not report them."""
    return [
        (mapping.start, mapping.end)
        for mapping in mappings()
        if mapping.access == "rw-p" and not mapping.has_file and mapping.name in ("", "[heap]")
    ]


def join_pages_since(before: list[Region]) -> int:
    """Back the memory that was mapped since ``before`` with huge pages where possible; returns the bytes changed.

    Args:
        before: The result of :func:`anonymous_regions` before the engine loaded its weights.
    """
    try:
        if "[never]" in _POLICY.read_text():  # the administrator's choice
            return 0
    except OSError:
        return 0
    collapse = adviser(_MADV_COLLAPSE)
    if collapse is None:
        return 0
    joined = 0
    for start, end in _without(anonymous_regions(), before):
        first = -(-start // HUGE_BYTES) * HUGE_BYTES
        for address in range(first, end - HUGE_BYTES + 1, HUGE_BYTES):
            if collapse(address, HUGE_BYTES):
                joined += HUGE_BYTES
    return joined


def _without(regions: list[Region], taken: list[Region]) -> Iterator[Region]:
    """The parts of ``regions`` outside ``taken``; both in order."""
    for start, end in regions:
        for taken_start, taken_end in taken:
            if taken_end <= start or taken_start >= end:
                continue
            if taken_start > start:
                yield start, taken_start
            start = max(start, taken_end)
        if start < end:
            yield start, end
