"""An array behind a header: what is packed is unpacked, and what is malformed says so."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgemem.wire import DTYPES, pack, unpack


def message(header: object, body: bytes = b"") -> bytes:
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(4, "little") + packed + body


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_header_again_brings_another_array(dtype: str) -> None:
    for value in (1, 2):
        wanted = np.full((2, 3), value, dtype)
        header, array = unpack(pack({"op": "step"}, wanted))
        assert header == {"op": "step"}
        assert isinstance(array, np.ndarray)
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, wanted)


def test_bytes_go_as_they_are() -> None:
    assert unpack(pack({"op": "snapshot"}, b"state")) == ({"op": "snapshot"}, b"state")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x09", "longer than the message"),
        (message([1]), "its header is a list"),
        (message({"dtype": ["float32"], "shape": [1]}, b"1234"), "its dtype is"),
        (message({"dtype": "float32", "shape": [True]}, b"1234"), "its shape is"),
        (message({"dtype": "float32", "shape": [-1]}, b"1234"), "its shape is"),
        (message({"dtype": "float32", "shape": [2]}, b"1234"), "does not fill 4 bytes"),
        (message({"dtype": "float32", "shape": [1]}, b"12345"), "does not fill 5 bytes"),
    ],
)
def test_a_malformed_message_says_what_is_wrong(data: bytes, problem: str) -> None:
    for _ in range(2):  # nothing wrong is remembered as right
        with pytest.raises((ValueError, TypeError), match=problem):
            unpack(data)
