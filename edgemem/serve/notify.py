"""Telling systemd that the server is ready, alive or stopping, by its datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket


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


async def watchdog() -> None:
    """Tell systemd that the event loop runs, twice in each period that it asks for, until cancelled."""
    period_us = os.environ.get("WATCHDOG_USEC", "")
    if not period_us.isdigit() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(int(period_us) / 2e6)
