"""Arrays and bytes behind a header, as a server and its clients send them.

The length of the header (4 bytes, little-endian), the header in JSON, and the body. For an array the header also has
its ``dtype`` and ``shape``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemem.reading import parse_json

Array = np.ndarray[Any, Any]
DTYPES = ("float32", "float16", "int64", "int32", "uint8")
_KNOWN = {name: np.dtype(name) for name in DTYPES}
_NAMES = {dtype: name for name, dtype in _KNOWN.items()}
_encode = json.JSONEncoder(separators=(",", ":")).encode  # made once: every message pays for it
_LENGTH = 4


def pack(header: Mapping[str, Any], body: Array | bytes) -> bytes:
    """A message of a header and an array of one of :data:`DTYPES`, or bytes."""
    if isinstance(body, np.ndarray):
        header = {**header, "dtype": _NAMES.get(body.dtype) or str(body.dtype), "shape": body.shape}
        body = body.tobytes()
    packed = _encode(header).encode()
    return b"".join((len(packed).to_bytes(_LENGTH, "little"), packed, body))


def unpack(data: bytes) -> tuple[dict[str, Any], Array | bytes]:
    """The header and the body of a message; the array is a view of ``data``.

    Raises:
        ValueError: It is malformed.
        TypeError: Its header is no object.
    """
    end = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    if len(data) < _LENGTH or end > len(data):
        raise ValueError("its header is longer than the message.")
    header = parse_json(data[_LENGTH:end].decode())
    if not isinstance(header, dict):
        raise TypeError(f"its header is a {type(header).__name__}, wanted an object.")
    if "dtype" not in header:
        return header, data[end:]
    name, shape = header.pop("dtype"), header.pop("shape", [])
    dtype = _KNOWN.get(name) if isinstance(name, str) else None
    sizes = shape if isinstance(shape, list) and all([type(size) is int and size >= 0 for size in shape]) else [-1]
    if dtype is None or math.prod(sizes) * dtype.itemsize != len(data) - end:
        raise ValueError(f"{name} of shape {shape} does not fill {len(data) - end} bytes; dtypes: {DTYPES}.")
    return header, np.frombuffer(data, dtype, offset=end).reshape(sizes)
