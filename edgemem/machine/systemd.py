"""Telling systemd that this process is ready, alive or stopping (``Type=notify``, ``WatchdogSec=``)."""

from __future__ import annotations

import math
import os
import socket
import time


def notify(message: str) -> bool:
    """Send a message such as ``READY=1``; whether somebody listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # an abstract address
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(address)
            sender.send(message.encode())
    except OSError:
        return False
    return True


class Heartbeat:
    """Tells systemd, twice in each period of its watchdog, that the work goes on. The loop that does the work calls it.

    Attributes:
        every_s: Seconds between two messages; infinite where no watchdog waits for this process.
    """

    def __init__(self) -> None:
        period_us = os.environ.get("WATCHDOG_USEC", "")
        is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.every_s = int(period_us) / 2e6 if period_us.isdigit() and int(period_us) and is_ours else math.inf
        self._due_s = time.monotonic() if math.isfinite(self.every_s) else math.inf

    def beat(self) -> float:
        """Send the message if it is due; the seconds until the next one is."""
        if self._due_s == math.inf:
            return math.inf
        now_s = time.monotonic()
        if now_s >= self._due_s:
            notify("WATCHDOG=1")
            self._due_s = now_s + self.every_s
        return self._due_s - now_s
