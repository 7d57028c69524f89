"""Reading what others wrote: text of bounded length, and JSON that has one meaning."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
from pathlib import Path
from typing import IO, Any

from edgemem.errors import InputError

MOST_JSON_BYTES = 64 << 20
MOST_TEXT_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_DEEPEST = 64
_INT64 = 1 << 63
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_at_most(file: IO[bytes], most_bytes: int) -> bytes:
    """All that a file, a pipe or a device gives.

    Raises:
        OSError: It cannot be read, or it gives more than ``most_bytes``.
    """
    parts, left = [], most_bytes
    while part := file.read(min(left + 1, _BLOCK_BYTES)):
        left -= len(part)
        if left < 0:
            raise OSError(errno.EFBIG, f"It gives more than {most_bytes:,} bytes")
        parts.append(part)
    return b"".join(parts)


def read_text(path: Path, name: str = "", file: IO[bytes] | None = None) -> str:
    """The text that a file, a pipe or a device gives; bytes that are not UTF-8 become surrogate escapes.

    Args:
        path: Where it is.
        name: What errors call it; the path if empty.
        file: It, where it is open already.

    Raises:
        InputError: It cannot be read, or gives more than :data:`MOST_TEXT_BYTES`.
    """
    try:
        with path.open("rb") if file is None else contextlib.nullcontext(file) as opened:
            return read_at_most(opened, MOST_TEXT_BYTES).decode("utf-8", "surrogateescape")
    except OSError as error:
        raise InputError(f"{name or path} cannot be read: {error.strerror or error}") from error


def parse_json(text: str | bytes, *, loose: bool = False) -> Any:
    """The value that JSON in UTF-8 holds, at most 64 levels deep and without unpaired surrogates.

    Args:
        text: The JSON.
        loose: Also take what transformers writes: NaN, and numbers that fit in no 64 bits.

    Raises:
        ValueError: It is not such JSON.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = (_LOOSE if loose else _STRICT).decode(text)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    if text.count("[") + text.count("{") > _DEEPEST and _is_deep(value):
        raise ValueError(f"its values are nested more than {_DEEPEST} levels deep")
    if _SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()  # a UnicodeEncodeError is a ValueError
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        level = [inner for outer in level if isinstance(outer, (dict, list)) for inner in _inside(outer)]
    return bool(level)


def _inside(value: dict[str, Any] | list[Any]) -> Any:
    return value.values() if isinstance(value, dict) else value


def _int64(digits: str) -> int:
    if len(digits) > 20 or not -_INT64 <= int(digits) < _INT64:
        raise ValueError(f"it holds an integer of {len(digits)} characters, which does not fit in 64 bits")
    return int(digits)


def _float64(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"it holds {digits[:20]}, which does not fit in a float of 64 bits")
    return value


def _constant(name: str) -> float:
    """Python's words for what JSON lacks. A state may start at an infinity, and nothing is NaN."""
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)


_LOOSE = json.JSONDecoder()
_STRICT = json.JSONDecoder(parse_int=_int64, parse_float=_float64, parse_constant=_constant)
