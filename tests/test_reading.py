"""Text and JSON of others: what is too long, too deep or has no one meaning is refused before it is used."""

from __future__ import annotations

import io
from typing import Any

import pytest

from edgemem.reading import parse_json, read_at_most

DEEP = "[" * 70 + "]" * 70


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": [1, -2.5, null, true, "é"]}', {"a": [1, -2.5, None, True, "é"]}),
        (b'"\\ud83d\\ude00"', "😀"),
        ("9223372036854775807", 2**63 - 1),
        ("-Infinity", -float("inf")),
        ("[" * 60 + "]" * 60, None),
    ],
)
def test_json_is_read(text: str | bytes, value: Any) -> None:
    assert parse_json(text) == value or value is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        (DEEP, "more than 64 levels deep"),
        ("[1e400]", "1e400, which does not fit in a float"),
        ("9223372036854775808", "does not fit in 64 bits"),
        ("1" * 5000, "an integer of 5000 characters"),
        ("[NaN]", "NaN"),
        ('{"\\ud800": 1}', "surrogates not allowed"),
        (b"\xff", "can't decode"),
        ("{", "Expecting"),
        ("", "Expecting"),
    ],
)
def test_json_that_would_break_its_readers_is_a_value_error(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


@pytest.mark.parametrize("text", ["NaN", "1e400", "1" * 30])
def test_what_transformers_writes_is_read_where_it_is_asked_for(text: str) -> None:
    parse_json(text, loose=True)
    with pytest.raises(ValueError, match="it holds"):
        parse_json(text)


@pytest.mark.parametrize("text", ["[" * 100_000, DEEP, "1" * 5000, '"\\ud800"'])
def test_what_would_break_any_reader_is_refused_there_too(text: str) -> None:
    with pytest.raises(ValueError, match=r"deep|limit|surrogates"):
        parse_json(text, loose=True)


def test_text_is_read_up_to_a_size() -> None:
    data = bytes(3_000_000)
    assert read_at_most(io.BytesIO(data), len(data)) == data
    with pytest.raises(OSError, match="more than 2,999,999 bytes"):
        read_at_most(io.BytesIO(data), len(data) - 1)
    with open("/dev/zero", "rb") as zeros, pytest.raises(OSError, match="more than 5 bytes"):
        read_at_most(zeros, 5)
