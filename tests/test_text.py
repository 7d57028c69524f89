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

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


def streamed(tokenizer: Tokenizer, tokens: list[int]) -> list[str]:
    """What the detokenizer gives out after each token, and at the end."""
    detokenizer = tokenizer.detokenizer()
    return [*(detokenizer.push(token) for token in tokens), detokenizer.finish()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, JsonTokenizer]:
    """Tokenizers of two families: byte-level BPE, and pieces with a marked leading blank and single bytes."""
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    folder = tmp_path_factory.mktemp("tokenizers")
    corpus = ["the naïve café serves tea", "東京の茶 is tea in 東京", "the the the tea"] * 20

    byte_level = Trained(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_level.train_from_iterator(
        corpus, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet)
    )
    byte_level.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    byte_level.save(str(folder / "byte_level.json"))

    pieces = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}}
    for piece in ["▁", "t", "h", "e", "a", "▁t", "▁th", "▁the", "ea"]:
        pieces[piece] = len(pieces)
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("e", "a")]
    fallback = Trained(models.BPE(pieces, merges, unk_token="<unk>", byte_fallback=True))
    fallback.pre_tokenizer = pre_tokenizers.Metaspace()
    fallback.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fallback.save(str(folder / "fallback.json"))
    return {name: JsonTokenizer(folder / f"{name}.json") for name in ("byte_level", "fallback")}


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


@pytest.mark.parametrize("name", ["byte_level", "fallback"])
@pytest.mark.parametrize("text", ["the tea the", "the naïve café", "東京 tea 東京", "x", "🚋🚋 the"])
def test_streamed_tokens_give_the_text_of_all_of_them_and_never_half_a_character(trained, name, text):
    tokenizer = trained[name]
    tokens = tokenizer.encode(text, start=False).tolist()
    parts = streamed(tokenizer, tokens)
    assert "".join(parts) == tokenizer.decode(tokens) == text
    assert not any("\ufffd" in part for part in parts)
    assert parts[-1] == ""  # nothing waited for the end


@pytest.mark.parametrize("name", ["byte_level", "fallback"])
def test_tokens_that_never_make_a_character_are_let_through_in_bounded_memory(trained, name):
    tokenizer = trained[name]
    stray = next(token for token in range(1, 260) if tokenizer.decode([token]) == "\ufffd")
    detokenizer: Any = tokenizer.detokenizer()
    text = "".join(detokenizer.push(stray) for _ in range(200))
    assert text.count("\ufffd") > 100
    assert len(detokenizer._tokens) < 20


def test_special_tokens_begin_a_text_and_do_not_continue_one(trained):
    tokenizer = trained["byte_level"]
    assert tokenizer.encode("tea").tolist() == [0, *tokenizer.encode("tea", start=False).tolist()]
    assert tokenizer.decode(tokenizer.encode("tea").tolist()) == "tea"


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
