"""Tokenizers encode and decode text, and continue a stream without an extra blank."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem.bundle import Bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError
from edgemem.text import ByteTokenizer, JsonTokenizer, open_tokenizer
from tests.text.tiny_tokenizers import MADE, byte_level

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS)
def test_bytes_decode_to_the_text_that_was_encoded(text):
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text).tolist()) == text
    assert tokenizer.encode(text).tolist() == list(text.encode())


def test_ids_above_255_have_no_text():
    assert ByteTokenizer().decode([104, 256, 105, 9999]) == "hi"


def test_bytes_that_are_not_utf8_are_encoded_from_surrogate_escapes():
    text = b"\xff\xfea".decode("utf-8", "surrogateescape")
    assert ByteTokenizer().encode(text).tolist() == [0xFF, 0xFE, ord("a")]


def test_a_lone_surrogate_is_an_input_error(tiny):
    for tokenizer in (ByteTokenizer(), *tiny.values()):
        with pytest.raises(InputError):
            tokenizer.encode("a\ud800")


# The vocabularies of the other two have no white space.
@pytest.mark.parametrize("name", sorted(set(MADE) - {"unigram", "wordpiece"}))
@pytest.mark.parametrize("more", [" the tea", "the", " 東京 the", "\nthe", ". tea"])
def test_text_that_continues_a_stream_gets_no_extra_blank(tiny, name, more):
    tokenizer = tiny[name]
    before = tokenizer.encode("the tea")
    after = tokenizer.encode(more, start=False)
    assert tokenizer.decode([*before, *after]) == tokenizer.decode(before) + more
    detokenizer = tokenizer.detokenizer(before.tolist())
    assert "".join(detokenizer.push(token) for token in after.tolist()) == more


def test_special_tokens_begin_a_text_and_do_not_continue_or_close_one(tiny):
    for name in ("with_bos", "with_bos_and_eos"):
        tokenizer = tiny[name]
        tea = tokenizer.encode("tea", start=False).tolist()
        assert tokenizer.encode("tea").tolist() == [0, *tea]
        assert tokenizer.encode("tea", special_tokens=False).tolist() == tea
        assert tokenizer.encode("<s>tea</s>", special_tokens=False).tolist() == [0, *tea, 1]
        assert tokenizer.encode("").tolist() == [0]
        assert tokenizer.encode("", special_tokens=False).tolist() == []
        assert tokenizer.decode([0, *tea]) == "tea"


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path):
    made = byte_level()
    made.enable_truncation(3)
    made.enable_padding(length=8)
    made.save(str(tmp_path / "tokenizer.json"))
    assert len(JsonTokenizer(tmp_path / "tokenizer.json").encode("xyzxy")) == 5
    assert len(JsonTokenizer(tmp_path / "tokenizer.json").encode("x")) == 1


def test_control_tokens_are_those_that_were_added(tiny):
    tokenizer = tiny["byte_level"]
    assert [tokenizer.is_control(token) for token in (0, 3, 100)] == [True, True, False]
    assert [ByteTokenizer().is_control(token) for token in (0, 255, 256)] == [False, False, True]


def test_a_tokenizer_file_that_is_damaged_is_a_bundle_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"model": 1')
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        JsonTokenizer(tmp_path / "tokenizer.json")


def test_a_panic_of_the_package_is_a_bundle_error_and_ctrl_c_is_not(tiny):
    class PanicException(BaseException):
        pass

    tokenizer = JsonTokenizer.__new__(JsonTokenizer)
    tokenizer._path = Path("tokenizer.json")
    for raised, seen in (
        (PanicException("index out of bounds"), BundleError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        tokenizer._tokenizer = SimpleNamespace(decode=Mock(side_effect=raised))
        with pytest.raises(seen) as caught:
            tokenizer.decode([1])
        assert seen is KeyboardInterrupt or "index out of bounds" in str(caught.value)


def test_a_decoder_that_panics_is_refused_when_it_is_read_and_its_panic_is_not_printed(tmp_path, capfd):
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.decoder = tokenizers.decoders.Strip("a", 10**9, 10**9)
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer that works"):
        JsonTokenizer(tmp_path / "tokenizer.json")
    assert capfd.readouterr().err == ""


def test_the_error_about_a_missing_package_names_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgemem-toolkit\[device\]"'):
        JsonTokenizer(tmp_path / "tokenizer.json")


def test_the_manifest_names_the_tokenizer(tmp_path):
    def bundle(tokenizer: str | None) -> Bundle:
        manifest = SimpleNamespace(tokenizer=tokenizer)
        return cast(Bundle, SimpleNamespace(manifest=manifest, file=tmp_path.joinpath, read=lambda *_: b"damaged"))

    assert open_tokenizer(bundle(None)) is None
    assert isinstance(open_tokenizer(bundle("bytes")), ByteTokenizer)
    with pytest.raises(BundleError):
        open_tokenizer(bundle("tokenizer.json"))


def test_the_byte_tokenizer_needs_no_other_package():
    code = "import sys, edgemem.text as t; t.ByteTokenizer().encode('a'); assert 'tokenizers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
