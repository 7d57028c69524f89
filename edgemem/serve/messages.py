"""Messages of a WebSocket: JSON as text, or an array behind a header as bytes.

In a binary message the header has what a JSON message has, without ``x`` (:mod:`edgemem.wire`).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from edgemem.errors import EdgememError
from edgemem.reading import parse_json
from edgemem.runtimes.memory import Array
from edgemem.serve.errors import RequestError
from edgemem.wire import pack, unpack

_compact = json.JSONEncoder(separators=(",", ":")).encode  # made once: a message pays for it


def parse_message(text: str | None, data: bytes | None) -> dict[str, Any]:
    """A message of a client; an array that it holds is under ``x``, and ``binary`` tells how it was sent.

    Raises:
        RequestError: It is malformed.
    """
    try:
        if text is not None:
            return {**_mapping(parse_json(text)), "binary": False}
        return _binary(data or b"")
    except (ValueError, TypeError, RecursionError, EdgememError) as error:
        raise RequestError(
            "malformed_message",
            f"the message cannot be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
            hint="Send JSON as text; or a header's length, the header and an array as bytes.",
        ) from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"it is a {type(value).__name__}, wanted an object.")
    return value


def _binary(data: bytes) -> dict[str, Any]:
    header, body = unpack(data)
    return {**header, "data" if isinstance(body, bytes) else "x": body, "binary": True}


def write_message(reply: dict[str, Any], outputs: Any = None, *, binary: bool = False) -> str | bytes:
    """A message to a client.

    Args:
        reply: Plain JSON values.
        outputs: An array, arrays by name, bytes (a snapshot), or ``None``.
        binary: Whether one array or bytes go as they are.
    """
    if binary and isinstance(outputs, (np.ndarray, bytes)):
        return pack(reply, outputs)
    if outputs is not None:
        reply = {**reply, "outputs": _plain(outputs)}
    return _compact(reply)


def _plain(outputs: Any) -> Any:
    """Arrays as lists; what is not finite becomes null, which JSON has."""
    if isinstance(outputs, dict):
        return {name: _plain(value) for name, value in outputs.items()}
    if isinstance(outputs, bytes):
        return outputs.hex()
    array: Array = np.asarray(outputs)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        plain = array.astype(object)
        plain[~np.isfinite(array)] = None
        return plain.tolist()
    return array.tolist()
