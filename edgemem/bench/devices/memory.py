"""Memory of this process as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

from edgemem.bench.devices.tree import Tree


def proportional_bytes(root: Path = Path("/")) -> int | None:
    """Resident bytes of this process, pages that it shares counted in part (PSS); ``None``: the kernel has no such.

    On an integrated GPU this is where buffers of the GPU show, as far as the process maps them.
    """
    for line in (Tree(root).text("proc/self/smaps_rollup") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Pss" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None
