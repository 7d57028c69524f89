"""Text ends before a stop text, and no part of the stop text is given out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.errors import InputError
from edgemem.text import StopText


def cut_by_hand(text: str, stops: list[str]) -> str:
    """Everything before the first stop string to be complete as the text grows letter by letter."""
    for end in range(len(text) + 1):
        found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
        if found:
            return text[: min(found)]
    return text


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 3), min_size=30, max_size=30),
)
def test_no_part_of_a_stop_text_is_given_out_however_the_text_is_cut(text, stops, sizes):
    cutter, given_out, rest = StopText(stops), "", text
    for size in sizes:
        given_out += cutter.push(rest[:size])
        rest = rest[size:]
        if cutter.found:
            break
        assert not any(stop in given_out for stop in stops)
    given_out += cutter.finish()
    fed = text[: len(text) - len(rest)]
    earliest = min((fed.find(stop) for stop in stops if stop in fed), default=len(fed))
    assert given_out == fed[:earliest]
    assert (cutter.found is not None) == any(stop in fed for stop in stops)


@given(st.text("abc", max_size=20), st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=3))
def test_letter_by_letter_the_stop_text_that_is_complete_first_ends_the_text(text, stops):
    cutter = StopText(stops)
    given_out = "".join(cutter.push(letter) for letter in text) + cutter.finish()
    assert given_out == cut_by_hand(text, stops)


def test_text_that_cannot_begin_a_stop_text_is_given_out_at_once():
    cutter = StopText(["END"])
    assert [cutter.push(part) for part in ("say", " E", "N", "TER", " END", "x")] == ["say", " ", "", "ENTER", " ", ""]
    assert cutter.found == "END"


def test_an_empty_stop_text_is_an_input_error():
    with pytest.raises(InputError):
        StopText([""])
