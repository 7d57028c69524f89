"""Tokenizers of every family, shared by the tests of this folder."""

from __future__ import annotations

from typing import Any

import pytest

from edgemem.text import JsonTokenizer
from tests.text.tiny_tokenizers import MADE, byte_level, with_bos

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
# Tokenizers that can encode any text; the others cannot encode the templates' line breaks.
COMPLETE = ("byte_level", "metaspace", "prepended", "unmarked")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, JsonTokenizer]:
    """Tokenizers of every family, by the names of :mod:`tests.text.tiny_tokenizers`, and two that put ``<s>`` first."""
    folder = tmp_path_factory.mktemp("tokenizers")
    made = {name: make() for name, make in MADE.items()}
    made |= {"with_bos": with_bos(byte_level()), "with_bos_and_eos": with_bos(byte_level(), eos=True)}
    for name, tokenizer in made.items():
        tokenizer.save(str(folder / f"{name}.json"))
    return {name: JsonTokenizer(folder / f"{name}.json") for name in made}


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[JsonTokenizer, Any]]:
    """Ours and transformers' of each family."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizers")
    both = {}
    for name in COMPLETE:
        MADE[name]().save(str(folder / f"{name}.json"))
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / f"{name}.json"), **SPECIAL)
        both[name] = (JsonTokenizer(folder / f"{name}.json"), theirs)
    return both
