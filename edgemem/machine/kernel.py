"""Files in which the Linux kernel describes the machine and its processes."""

from __future__ import annotations

from pathlib import Path


def read(path: str) -> str | None:
    """The text of a file without surrounding spaces and zero bytes; ``None`` if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\x00\n ")
    except OSError:
        return None


def entry_bytes(path: str, key: str) -> int:
    """The bytes that a line ``key:   1234 kB`` of a file gives; 0 if there is no such line."""
    for line in (read(path) or "").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
