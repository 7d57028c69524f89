"""Messages of a WebSocket: JSON as text, or an array behind a header as bytes.

A binary message is the length of its header (4 bytes, little-endian), the header in JSON, and the array's bytes. The
header has what a JSON message has, without ``x``, and the array's ``dtype`` and ``shape``.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from edgemem.errors import EdgememError
from edgemem.reading import parse_json
from edgemem.runtimes.memory import Array
from edgemem.serve.errors import RequestError

_DTYPES = ("float32", "float16", "int64", "int32", "uint8")
_HEADER = 4


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
    end = _HEADER + int.from_bytes(data[:_HEADER], "little")
    if len(data) < _HEADER or end > len(data):
        raise ValueError("its header is longer than the message.")
    header = _mapping(parse_json(data[_HEADER:end].decode()))
    if "dtype" not in header:
        return {**header, "data": data[end:], "binary": True}
    dtype, shape = header.pop("dtype"), header.pop("shape", [])
    sizes = shape if isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape) else [-1]
    if dtype not in _DTYPES or math.prod(sizes) * np.dtype(dtype).itemsize != len(data) - end:
        raise ValueError(f"{dtype} of shape {shape} does not fill {len(data) - end} bytes; dtypes: {_DTYPES}.")
    return {**header, "x": np.frombuffer(data, dtype, offset=end).reshape(sizes), "binary": True}


def write_message(reply: dict[str, Any], outputs: Any = None, *, binary: bool = False) -> str | bytes:
    """A message to a client.

    Args:
        reply: Plain JSON values.
        outputs: An array, arrays by name, bytes (a snapshot), or ``None``.
        binary: Whether one array or bytes go as they are.
    """
    if binary and isinstance(outputs, (np.ndarray, bytes)):
        if isinstance(outputs, np.ndarray):
            reply = {**reply, "dtype": str(outputs.dtype), "shape": list(outputs.shape)}
            outputs = np.ascontiguousarray(outputs).tobytes()
        header = json.dumps(reply).encode()
        return b"".join((len(header).to_bytes(_HEADER, "little"), header, outputs))
    if outputs is not None:
        reply = {**reply, "outputs": _plain(outputs)}
    return json.dumps(reply, separators=(",", ":"))


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
