import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.bundle import Bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError
from edgemem.text import ByteTokenizer, Detokenizer, JsonTokenizer, StopText, Tokenizer, open_tokenizer
from tests.text.tiny_tokenizers import MADE, byte_level, with_bos

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """What the detokenizer gives out after each token, and at the end."""
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, JsonTokenizer]:
    """Tokenizers of every family, by the names of :mod:`tests.text.tiny_tokenizers`, and two that put ``<s>`` first."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {name: make() for name, make in MADE.items()}
    made |= {"with_bos": with_bos(byte_level()), "with_bos_and_eos": with_bos(byte_level(), eos=True)}
    for name, tokenizer in made.items():
        tokenizer.save(str(folder / f"{name}.json"))
    return {name: JsonTokenizer(folder / f"{name}.json") for name in made}


@given(TEXTS)
def test_bytes_come_back_as_the_text_they_were(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    assert tokenizer.encode(text).tolist() == list(text.encode())


@given(TEXTS)
def test_streamed_bytes_give_each_character_whole_with_its_last_byte(text):
    expected = [part for character in text for part in [""] * (len(character.encode()) - 1) + [character]]
    assert streamed(ByteTokenizer(), list(text.encode())) == [*expected, ""]


@given(st.lists(st.integers(0, 255)))
def test_streamed_bytes_that_are_no_text_come_out_as_decoding_them_at_once_would(tokens):
    assert "".join(streamed(ByteTokenizer(), tokens)) == bytes(tokens).decode("utf-8", "replace")


def test_a_character_that_is_cut_off_comes_as_a_replacement_at_the_end():
    assert streamed(ByteTokenizer(), list("é".encode()[:1])) == ["", "\ufffd"]


def test_ids_above_255_have_no_text():
    assert ByteTokenizer().decode([104, 256, 105, 9999]) == "hi"
    assert streamed(ByteTokenizer(), [104, 256, 105, 9999]) == ["h", "", "i", "", ""]


def test_bytes_that_are_not_utf8_travel_as_surrogate_escapes():
    text = b"\xff\xfea".decode("utf-8", "surrogateescape")
    assert ByteTokenizer().encode(text).tolist() == [0xFF, 0xFE, ord("a")]


def test_a_lone_surrogate_is_refused(trained):
    for tokenizer in (ByteTokenizer(), *trained.values()):
        with pytest.raises(InputError):
            tokenizer.encode("a\ud800")


@pytest.mark.parametrize("name", MADE)
@given(text=st.text(st.sampled_from("theas .\n東京é🚋"), max_size=30))
def test_streamed_tokens_give_the_text_of_all_of_them(trained, name, text):
    tokenizer = trained[name]
    tokens = tokenizer.encode(text).tolist()
    assert "".join(streamed(tokenizer, tokens)) == tokenizer.decode(tokens)


@pytest.mark.parametrize("name", ["byte_level", "metaspace", "prepended", "unmarked"])
@pytest.mark.parametrize("text", ["the tea the", "the naïve café", "東京 tea 東京", "x", "🚋🚋 the"])
def test_streamed_tokens_lose_nothing_and_never_give_half_a_character(trained, name, text):
    parts = streamed(trained[name], trained[name].encode(text).tolist())
    assert "".join(parts) == text
    assert not any("\ufffd" in part for part in parts)
    assert parts[-1] == ""  # nothing waited for the end


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_tokens_that_never_make_a_character_are_let_through_in_bounded_memory(trained, name):
    tokenizer = trained[name]
    stray = next(token for token in range(3, 300) if tokenizer.decode([token]) == "\ufffd")
    detokenizer: Any = tokenizer.detokenizer()
    text = "".join(detokenizer.push(stray) for _ in range(200))
    assert text.count("\ufffd") > 100
    assert len(detokenizer._tokens) < 20


# The vocabularies of the other two have no white space.
@pytest.mark.parametrize("name", sorted(set(MADE) - {"unigram", "wordpiece"}))
@pytest.mark.parametrize("more", [" the tea", "the", " 東京 the", "\nthe", ". tea"])
def test_text_that_goes_on_with_a_stream_is_that_text_and_no_more(trained, name, more):
    tokenizer = trained[name]
    before = tokenizer.encode("the tea")
    after = tokenizer.encode(more, start=False)
    assert tokenizer.decode([*before, *after]) == tokenizer.decode(before) + more
    detokenizer = tokenizer.detokenizer(before.tolist())
    assert "".join(detokenizer.push(token) for token in after.tolist()) == more


@pytest.mark.parametrize("name", MADE)
def test_a_word_keeps_its_leading_blank_behind_a_context(trained, name):
    tokenizer = trained[name]
    tokens = tokenizer.encode("tea the").tolist()
    cut = next(end for end in range(len(tokens)) if tokenizer.decode(tokens[: end + 1]).strip() == "tea") + 1
    detokenizer = tokenizer.detokenizer(tokens[:cut])
    assert "".join(detokenizer.push(token) for token in tokens[cut:]) + detokenizer.finish() == " the"


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_a_context_that_begins_amid_a_character_does_no_harm(trained, name):
    tokenizer = trained[name]
    emoji = tokenizer.encode("🚋" * 9, start=False).tolist()
    detokenizer = tokenizer.detokenizer(emoji)
    assert "".join(detokenizer.push(token) for token in tokenizer.encode("é🚋the", start=False).tolist()) == "é🚋the"


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_a_context_that_ends_amid_a_character_gives_it_whole_and_one_of_stray_bytes_nothing(trained, name):
    tokenizer = trained[name]
    tokens = tokenizer.encode(" tea 🚋", start=False).tolist()
    detokenizer = tokenizer.detokenizer(tokens[:-1])
    assert detokenizer.push(tokens[-1]) == "🚋"
    stray = tokenizer.detokenizer(tokens[:1] + tokens[-1:] * 12)
    assert set("".join(stray.push(token) for token in tokens[-1:] * 20)) <= {"\ufffd"}


@pytest.mark.parametrize("name", ["byte_level", "metaspace", "prepended"])
def test_special_tokens_between_words_have_no_text_and_cost_none(trained, name):
    tokenizer = trained[name]
    (the,) = tokenizer.encode("the" if name == "byte_level" else " the", start=False).tolist()
    (tea,) = tokenizer.encode(" tea", start=False).tolist()
    end = tokenizer.encode("<|im_end|>", start=False).tolist()
    assert "".join(streamed(tokenizer, [the, *end * 20, tea])) == "the tea"


def test_special_tokens_begin_a_text_and_do_not_continue_or_close_one(trained):
    for name in ("with_bos", "with_bos_and_eos"):
        tokenizer = trained[name]
        tea = tokenizer.encode("tea", start=False).tolist()
        assert tokenizer.encode("tea").tolist() == [0, *tea]
        assert tokenizer.encode("tea", special_tokens=False).tolist() == tea
        assert tokenizer.encode("<s>tea</s>", special_tokens=False).tolist() == [0, *tea, 1]
        assert tokenizer.encode("").tolist() == [0]
        assert tokenizer.encode("", special_tokens=False).tolist() == []
        assert tokenizer.decode([0, *tea]) == "tea"


def test_truncation_and_padding_of_a_training_are_left_behind(tmp_path):
    made = byte_level()
    made.enable_truncation(3)
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(JsonTokenizer(tmp_path / "tokenizer.json").encode("xyzxy")) == 5
    assert len(JsonTokenizer(tmp_path / "tokenizer.json").encode("x")) == 1


def test_control_tokens_are_those_that_were_added(trained):
    tokenizer = trained["byte_level"]
    assert [tokenizer.is_control(token) for token in (0, 3, 100)] == [True, True, False]
    assert [ByteTokenizer().is_control(token) for token in (0, 255, 256)] == [False, False, True]


def test_a_tokenizer_file_that_is_damaged_is_a_bundle_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 1')
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        JsonTokenizer(tmp_path / "tokenizer.json")


def test_without_the_package_the_error_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgemem\[text\]"'):
        JsonTokenizer(tmp_path / "tokenizer.json")


def test_the_manifest_names_the_tokenizer(tmp_path):
    def bundle(tokenizer: str | None) -> Bundle:
        return cast(Bundle, SimpleNamespace(manifest=SimpleNamespace(tokenizer=tokenizer), file=tmp_path.joinpath))

    assert open_tokenizer(bundle(None)) is None
    assert isinstance(open_tokenizer(bundle("bytes")), ByteTokenizer)
    with pytest.raises(BundleError):
        open_tokenizer(bundle("tokenizer.json"))


def test_text_of_bytes_needs_no_other_package():
    code = "import sys, edgemem.text as t; t.ByteTokenizer().encode('a'); assert 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


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
def test_no_part_of_a_stop_string_is_given_out_however_the_text_is_cut(text, stops, sizes):
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
def test_letter_by_letter_the_stop_string_that_is_complete_first_ends_the_text(text, stops):
    cutter = StopText(stops)
    given_out = "".join(cutter.push(letter) for letter in text) + cutter.finish()
    assert given_out == cut_by_hand(text, stops)


def test_text_that_cannot_begin_a_stop_string_is_given_out_at_once():
    cutter = StopText(["END"])
    assert [cutter.push(part) for part in ("say", " E", "N", "TER", " END", "x")] == ["say", " ", "", "ENTER", " ", ""]
    assert cutter.found == "END"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InputError):
        StopText([""])


def test_the_base_class_cannot_be_used_itself():
    with pytest.raises(TypeError):
        Detokenizer()  # type: ignore[abstract]
