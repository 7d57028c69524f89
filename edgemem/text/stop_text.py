"""Ending a text at a string."""

from __future__ import annotations

from collections.abc import Sequence

from edgemem.errors import InputError


class StopText:
    """Cuts streamed text at the first of several stop texts. No part of a stop text is given out.

    Args:
        stops: The stop texts; none is empty.

    Attributes:
        found: The stop text that was found, or ``None``.

    Raises:
        InputError: A stop text is empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InputError("a stop text is empty.")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that cannot belong to a stop text. Once one is found, the result is always empty."""
        if self.found is not None:
            return ""
        self._held += text
        starts = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            at, self.found = min(starts, key=lambda start: start[0])
            given, self._held = self._held[:at], ""
            return given
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        given, self._held = self._held[:cut], self._held[cut:]
        return given

    def finish(self) -> str:
        """The text that was held back because a stop text could have followed."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest beginning of ``stop`` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
