"""What a way to a server must do."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from edgemem.errors import InputError
from edgemem.runtimes.inputs import one_array
from edgemem.runtimes.memory import Array

Op = Literal["step", "feed"]


class LinkLostError(Exception):
    """The connection broke, or the server no longer has the stream: open it again."""


class Link(Protocol):
    """A connection to the one stream that it opens. Every call may raise :class:`LinkLostError`."""

    def open(self, snapshot: bytes | None) -> None:
        """Make a new connection, and have the stream as the snapshot holds it, or at its beginning.

        Raises:
            EdgememError: The server refuses.
        """

    def resume(self) -> bytes | None:
        """Make the first connection to a stream that may exist already; its snapshot, unless it is at position 0."""

    def send(self, op: Op, x: Any, outputs: str, wants_snapshot: bool) -> tuple[Any, bytes | None]:
        """Advance the stream.

        Returns:
            Its outputs without the batch axis, and its new snapshot if that is wanted.

        Raises:
            EdgememError: The server refuses; the stream is as it was.
        """

    def forget(self) -> None:
        """Tell the server that the stream is over."""

    def close(self) -> None:
        """End the connection."""


def numbers(x: Any, name: str = "x") -> Array:
    """What a caller passed for one input, as an array.

    Raises:
        InputError: It is not one array of numbers.
    """
    array = one_array(name, x)
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} of dtype {array.dtype}, wanted numbers.", hint="Encode text to token ids first.")
    return array
