"""Memory of this process as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

from edgemem.bench.devices.tree import Tree


def proportional_bytes(root: Path = Path("/")) -> int | None:
    """Resident bytes of this process, with a share of the pages that other processes use too (PSS).

    It includes the buffers of an integrated GPU that the process maps. ``None``: the kernel does not report it.
    """
    for line in (Tree(root).text("proc/self/smaps_rollup") or "").splitlines():
        key, _, value = line.partition(":")
        if key == "Pss" and value.split()[:1] and value.split()[0].isdigit():
            return int(value.split()[0]) * 1024
    return None
