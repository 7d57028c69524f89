"""Where tensors lie in a safetensors file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from edgemem.weights_file import tensor_places


def test_the_bytes_at_a_place_are_the_tensors(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([7, -8], np.int64)}
    save_file(tensors, tmp_path / "w", metadata={"format": "pt"})
    content = (tmp_path / "w").read_bytes()
    places = tensor_places(tmp_path / "w")
    assert {name: content[start:end] for name, (start, end) in places.items()} == {
        name: value.tobytes() for name, value in tensors.items()
    }


@pytest.mark.parametrize("content", [b"", b"short", b"\x02" + bytes(7) + b"[]", b"\x0a" + bytes(7) + b'{"a":{"b":1}}'])
def test_another_file_is_not_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_places(tmp_path / "w")
