"""Arrays and bytes behind a header, as a server and its clients send them.

The length of the header (4 bytes, little-endian), the header in JSON, and the body. For an array the header also has
its ``dtype`` and ``shape``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from edgemem.reading import parse_json

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float16", "int64", "int32", "uint8")
_NAMES = {np.dtype(name): name for name in DTYPES}
_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: every message pays for it
_LENGTH = 4
_SHORT, _HEADERS = 16 << 10, 64


def pack(header: Mapping[str, Any], body: Array | bytes) -> bytes:
    """A message of a header and an array of one of :data:`DTYPES`, or bytes."""
    if isinstance(body, np.ndarray):
        header = {**header, "dtype": _NAMES.get(body.dtype) or str(body.dtype), "shape": body.shape}
        body = body.tobytes()
    packed = _encode(header).encode()
    return b"".join((len(packed).to_bytes(_LENGTH, "little"), packed, body))


def unpack(data: bytes) -> tuple[dict[str, Any], Array | bytes]:
    """The header and the body of a message; the array is a view of ``data``.

    Messages may share what the header holds: it must not be changed.

    Raises:
        ValueError: It is malformed.
        TypeError: Its header is no object.
    """
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or end > len(data):
        raise ValueError("its header is longer than the message.")
    header, dtype, shape = (_known_header if end <= _SHORT else _header)(data[_LENGTH:end])
    if dtype is None:
        return header, data[end:]
    if math.prod(shape) * dtype.itemsize != len(data) - end:
        raise ValueError(f"{dtype} of shape {shape} does not fill {len(data) - end} bytes.")
    return header, np.frombuffer(data, dtype, offset=end).reshape(shape)


def _header(packed: bytes) -> tuple[dict[str, Any], np.dtype[Any] | None, list[int]]:
    """A header without ``dtype`` and ``shape``, and these."""
    header = parse_json(packed)
    if not isinstance(header, dict):
        raise TypeError(f"its header is a {type(header).__name__}, wanted an object.")
    if "dtype" not in header:
        return header, None, []
    name, shape = header.pop("dtype"), header.pop("shape", [])
    if name not in DTYPES:
        raise ValueError(f"its dtype is {name!r}, wanted one of {', '.join(DTYPES)}.")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"its shape is {shape!r}, wanted a list of sizes.")
    return header, np.dtype(name), shape


_known_header = lru_cache(_HEADERS)(_header)  # most clients send the same again and again
