"""Where each tensor's bytes lie in a safetensors file, which ONNX graphs refer to as external data."""

from __future__ import annotations

import struct
from pathlib import Path

from edgemem.reading import parse_json


def tensor_places(path: Path) -> dict[str, tuple[int, int]]:
    """Name → first byte, and the byte behind the last: an 8-byte length, a JSON header, then the data.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not such a file.
    """
    with path.open("rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = parse_json(file.read(length))
            places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
            return {name: (8 + length + start, 8 + length + end) for name, (start, end) in places.items()}
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a safetensors file: {error}") from error
