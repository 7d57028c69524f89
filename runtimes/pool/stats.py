"""The figures of a pool."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class PoolStats:
    """What a pool has done since it was opened.

    Attributes:
        slots: Streams that it can hold.
        streams: Streams that it holds.
        waiting: Requests that wait.
        ticks: Batches of steps.
        steps: Steps in them.
        slices: Parts of longer work.
        refused: Calls refused because a queue was full.
    """

    slots: int = 0
    streams: int = 0
    waiting: int = 0
    ticks: int = 0
    steps: int = 0
    slices: int = 0
    refused: int = 0
