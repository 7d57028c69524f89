"""A made-up systemd: a socket that hears what a service tells it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest


class Messages:
    """What was told.

    Args:
        path: Where the socket is to be.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def get(self, timeout_s: float) -> str | None:
        """The next message; ``None`` if none arrives in that time."""
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(200).decode()
        except (TimeoutError, BlockingIOError):
            return None

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()


def under_systemd(patch: pytest.MonkeyPatch, folder: Path, watchdog_s: float | None = None) -> Messages:
    """Make this process, and those that it starts, a service with such a watchdog."""
    messages = Messages(folder / "notify")
    patch.setenv("NOTIFY_SOCKET", str(folder / "notify"))
    if watchdog_s is not None:
        patch.setenv("WATCHDOG_USEC", str(int(watchdog_s * 1e6)))
    return messages
