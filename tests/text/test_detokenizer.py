"""A detokenizer gives out the text of its tokens, in pieces that never end inside a character."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.text import ByteTokenizer, Detokenizer, Tokenizer
from tests.text.tiny_tokenizers import MADE

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """What the detokenizer gives out after each token, and at the end."""
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@given(TEXTS)
def test_streamed_bytes_give_each_character_with_its_last_byte(text):
    expected = [part for character in text for part in [""] * (len(character.encode()) - 1) + [character]]
    assert streamed(ByteTokenizer(), list(text.encode())) == [*expected, ""]


@given(st.lists(st.integers(0, 255)))
def test_streamed_bytes_that_are_not_text_decode_as_they_would_at_once(tokens):
    assert "".join(streamed(ByteTokenizer(), tokens)) == bytes(tokens).decode("utf-8", "replace")


def test_a_character_that_is_cut_off_becomes_a_replacement_at_the_end():
    assert streamed(ByteTokenizer(), list("é".encode()[:1])) == ["", "\ufffd"]


def test_streamed_ids_above_255_have_no_text():
    assert streamed(ByteTokenizer(), [104, 256, 105, 9999]) == ["h", "", "i", "", ""]


@pytest.mark.parametrize("name", MADE)
@given(text=st.text(st.sampled_from("theas .\n東京é🚋"), max_size=30))
def test_streamed_tokens_give_the_text_of_all_of_them(tiny, name, text):
    tokenizer = tiny[name]
    tokens = tokenizer.encode(text).tolist()
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@pytest.mark.parametrize("name", ["byte_level", "metaspace", "prepended", "unmarked"])
@pytest.mark.parametrize("text", ["the tea the", "the naïve café", "東京 tea 東京", "x", "🚋🚋 the"])
def test_streamed_tokens_lose_nothing_and_never_give_half_a_character(tiny, name, text):
    parts = streamed(tiny[name], tiny[name].encode(text).tolist())
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert parts[-1] == ""  # nothing waited for the end


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_tokens_that_never_make_a_character_are_given_out_in_bounded_memory(tiny, name):
    tokenizer = tiny[name]
    stray = next(token for token in range(3, 300) if tokenizer.decode([token]) == "\ufffd")
    detokenizer: Any = tokenizer.detokenizer()
    text = "".join(detokenizer.push(stray) for _ in range(200))
    assert text.count("\ufffd") > 100
    assert len(detokenizer._tokens) < 20


@pytest.mark.parametrize("name", MADE)
def test_a_word_after_a_context_keeps_its_leading_blank(tiny, name):
    tokenizer = tiny[name]
    tokens = tokenizer.encode("tea the").tolist()
    cut = next(end for end in range(len(tokens)) if tokenizer.decode(tokens[: end + 1]).strip() == "tea") + 1
    detokenizer = tokenizer.detokenizer(tokens[:cut])
    assert "".join(detokenizer.push(token) for token in tokens[cut:]) + detokenizer.finish() == " the"


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_a_context_may_begin_inside_a_character(tiny, name):
    tokenizer = tiny[name]
    emoji = tokenizer.encode("🚋" * 9, start=False).tolist()
    detokenizer = tokenizer.detokenizer(emoji)
    assert "".join(detokenizer.push(token) for token in tokenizer.encode("é🚋the", start=False).tolist()) == "é🚋the"


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_a_character_that_begins_in_the_context_is_given_out_and_stray_bytes_are_not(tiny, name):
    tokenizer = tiny[name]
    tokens = tokenizer.encode(" tea 🚋", start=False).tolist()
    detokenizer = tokenizer.detokenizer(tokens[:-1])
    assert detokenizer.push(tokens[-1]) == "🚋"
    stray = tokenizer.detokenizer(tokens[:1] + tokens[-1:] * 12)
    assert set("".join(stray.push(token) for token in tokens[-1:] * 20)) <= {"\ufffd"}


@pytest.mark.parametrize("name", ["byte_level", "metaspace", "prepended"])
def test_special_tokens_between_words_have_no_text_and_remove_none(tiny, name):
    tokenizer = tiny[name]
    (the,) = tokenizer.encode("the" if name == "byte_level" else " the", start=False).tolist()
    (tea,) = tokenizer.encode(" tea", start=False).tolist()
    end = tokenizer.encode("<|im_end|>", start=False).tolist()
    assert "".join(streamed(tokenizer, [the, *end * 20, tea])) == "the tea"


def test_the_base_class_cannot_be_used_itself():
    with pytest.raises(TypeError):
        Detokenizer()  # type: ignore[abstract]
