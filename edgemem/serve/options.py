"""What a server is told: addresses, limits, and where states are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ServeOptions:
    """How a server behaves.

    Attributes:
        host: The address to listen on.
        port: The port; 0 takes a free one.
        token: What clients must send as ``Authorization: Bearer``; ``None`` asks for nothing.
        origins: Origins of web pages that may connect besides the server's own.
        slots: Streams of each bundle that are in memory at a time.
        most_streams: Streams of each bundle, with those that are parked.
        client_streams: Streams that one connection may have open.
        message_bytes: Most bytes of one message or request.
        messages_per_s: Messages a second that one connection may send.
        idle_s: A stream that nobody used for so many seconds is parked.
        wait_ms: How long a step waits for the steps of others, in milliseconds.
        deadline_ms: A step that takes longer counts as late, in milliseconds.
        state_dir: Where states are kept; ``None`` keeps them in memory alone.
        save_every_s: Seconds between two savings.
        other_states: What to do with states of other weights that lie there.
    """

    host: str = "127.0.0.1"
    port: int = 8642
    token: str | None = None
    origins: tuple[str, ...] = ()
    slots: int = 64
    most_streams: int = 10_000
    client_streams: int = 1_000
    message_bytes: int = 4 << 20
    messages_per_s: float = 2_000.0
    idle_s: float = 60.0
    wait_ms: float = 0.0
    deadline_ms: float = 100.0
    state_dir: Path | None = None
    save_every_s: float = 30.0
    other_states: Literal["refuse", "discard", "keep"] = "refuse"
