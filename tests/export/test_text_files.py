"""What a checkpoint's folder says about text, held to what transformers makes of the same folder."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from edgemem.bundle import open_bundle
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import ExportError
from edgemem.export import ExportOptions, export_bundle, load_source
from edgemem.export.text_files import TextFiles, text_files
from edgemem.generation_defaults import GenerationDefaults
from edgemem.models.checkpoint import save_checkpoint
from edgemem.models.decoder import Decoder
from edgemem.text import JsonTokenizer
from edgemem.text.chat_template import ChatTemplate
from tests.text import chat_templates
from tests.text.tiny_tokenizers import MADE, byte_level, with_bos


def write(folder: Path, name: str, data: Any) -> None:
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


def ours(folder: Path, files: TextFiles) -> JsonTokenizer:
    assert files.tokenizer is not None
    (folder / "ours.json").write_text(files.tokenizer, encoding="utf-8")
    return JsonTokenizer(folder / "ours.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint's folder with a byte-level tokenizer that begins a text with ``<s>``."""
    with_bos(byte_level()).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.mark.parametrize("family", MADE)
@pytest.mark.parametrize("begins", [True, False])
def test_what_transformers_saves_reads_as_it_reads_it(tmp_path, family, begins):
    from transformers import PreTrainedTokenizerFast

    made = MADE[family]()
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=with_bos(made) if begins else made,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=chat_templates.CHATML,
    )
    theirs.save_pretrained(tmp_path)
    files = text_files(tmp_path)
    tokenizer = ours(tmp_path, files)
    for text in ("the tea", "the</s> 東京 tea", "<s>x"):
        ids = tokenizer.encode(text)
        assert ids.tolist() == theirs.encode(text)
        assert tokenizer.decode(ids.tolist()) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    messages = [{"role": "user", "content": "tea"}]
    assert ChatTemplate(files.chat_template or "", files.special_tokens).render(
        messages, reply_follows=True
    ) == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert files.special_tokens == theirs.special_tokens_map
    assert files.generation.eos_token_ids == (theirs.eos_token_id,)
    assert files.generation.bos_token_id == theirs.bos_token_id


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("flag", [True, False, None])
def test_a_text_begins_as_the_tokenizer_has_it_whatever_older_settings_say(tmp_path, in_file, flag):
    from transformers import AutoTokenizer

    made = byte_level()
    (with_bos(made) if in_file else made).save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    write(tmp_path, "tokenizer_config.json", settings | ({} if flag is None else {"add_bos_token": flag}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer = ours(tmp_path, text_files(tmp_path))
    assert tokenizer.encode("the tea").tolist() == theirs.encode("the tea")
    assert tokenizer.encode("the tea", special_tokens=False).tolist() == theirs.encode(
        "the tea", add_special_tokens=False
    )


def test_named_tokens_are_special_though_the_tokenizer_does_not_say_so(tmp_path):
    from transformers import AutoTokenizer

    data = json.loads(byte_level().to_str())
    data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["content"] != "<|im_end|>"]
    data["added_tokens"][1]["special"] = False
    write(tmp_path, "tokenizer.json", data)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "</s>"}
    write(tmp_path, "tokenizer_config.json", settings)
    text = "the</s> tea<|im_end|>"
    theirs = AutoTokenizer.from_pretrained(tmp_path).encode(text)
    tokenizer = ours(tmp_path, text_files(tmp_path))
    assert tokenizer.encode(text).tolist() == theirs
    assert tokenizer.decode(theirs) == "the tea"


def test_special_tokens_may_be_objects_or_stand_in_a_file_of_their_own(folder):
    write(folder, "tokenizer_config.json", {"bos_token": {"__type": "AddedToken", "content": "<s>"}, "pad_token": None})
    write(folder, "special_tokens_map.json", {"bos_token": "<other>", "eos_token": {"content": "</s>"}})
    files = text_files(folder)
    assert files.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert files.generation == GenerationDefaults(eos_token_ids=(1,), bos_token_id=0)


def test_a_folder_without_a_tokenizer_has_no_text(tmp_path):
    write(tmp_path, "config.json", {"model_type": "mamba", "eos_token_id": 0})
    assert text_files(tmp_path) == TextFiles(generation=GenerationDefaults(eos_token_ids=(0,)))


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "qwen.tiktoken", "rwkv_vocab_v20230424.txt"])
def test_a_tokenizer_that_no_device_reads_is_refused_with_the_way_to_convert_it(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(ExportError, match=rf"tokenizer in {name}, but no tokenizer\.json") as caught:
        text_files(tmp_path)
    assert "save_pretrained" in (caught.value.hint or "")


def test_the_conversion_that_the_refusal_names_works(tmp_path):
    data = json.loads(byte_level().to_str())["model"]
    write(tmp_path, "vocab.json", data["vocab"])
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in data["merges"]))
    write(tmp_path, "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    write(tmp_path, "config.json", {"model_type": "gpt2"})
    with pytest.raises(ExportError) as caught:
        text_files(tmp_path)
    command = shlex.split((caught.value.hint or "").splitlines()[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    assert ours(tmp_path, text_files(tmp_path)).encode("the tea").tolist() == byte_level().encode("the tea").ids


def test_the_template_may_lie_in_a_file_in_the_settings_or_under_a_name(folder):
    def template() -> str | None:
        return text_files(folder).chat_template

    assert template() is None
    write(folder, "chat_template.json", {"chat_template": "old"})
    assert template() == "old"
    write(folder, "tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "only"}]})
    assert template() == "only"
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    write(folder, "tokenizer_config.json", {"chat_template": named})
    assert template() == "d"
    write(folder, "tokenizer_config.json", {"chat_template": "one"})
    assert template() == "one"
    (folder / "chat_template.jinja").write_text("é", encoding="utf-8")
    assert template() == "é"


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no json": ("tokenizer_config.json", "{", "tokenizer_config.json cannot be read"),
    "a list": ("generation_config.json", "[]", "generation_config.json holds list"),
    "a tokenizer without a model": ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
    "no template": ("chat_template.jinja", "{% if %}", "chat template of .*, line 1"),
    "template of a wrong type": ("tokenizer_config.json", '{"chat_template": 3}', "chat_template is int"),
    "a nameless template": ("tokenizer_config.json", '{"chat_template": [{"a": 1}]}', "chat_template is malformed"),
    "no default among the templates": (
        "tokenizer_config.json",
        '{"chat_template": [{"name": "a", "template": ""}, {"name": "b", "template": ""}]}',
        "none of the chat templates a, b is named default",
    ),
    "an end that is text": ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id is 'x'"),
    "ends that are text": ("generation_config.json", '{"eos_token_id": [1, "x"]}', "eos_token_id is "),
    "top_p above 1": ("generation_config.json", '{"top_p": 2}', "top_p is 2, wanted a number above 0 and at most 1"),
    "temperature of text": ("generation_config.json", '{"temperature": "hot"}', "temperature is 'hot'"),
    "temperature that is not finite": ("generation_config.json", '{"temperature": Infinity}', "temperature is inf"),
    "do_sample of a number": ("generation_config.json", '{"do_sample": 1}', "do_sample is 1, wanted true or false"),
    "top_k of a fraction": ("generation_config.json", '{"top_k": 1.5}', "top_k is 1.5"),
    "no tokens at all": ("generation_config.json", '{"max_new_tokens": 0}', "max_new_tokens is 0"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_damaged_is_refused_by_its_name(folder, what):
    name, text, message = REFUSED[what]
    (folder / name).write_text(text)
    with pytest.raises(ExportError, match=message):
        text_files(folder)


def test_generation_defaults_are_kept_and_what_is_not_supported_is_named(folder):
    given = {
        "eos_token_id": [3, 1, 3],
        "bos_token_id": 0,
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.95,
        "min_p": 0.05,
        "max_new_tokens": 99,
        "max_length": 20,
        "repetition_penalty": 1.1,
        "num_beams": 1,
        "no_repeat_ngram_size": 0,
        "typical_p": None,
        "suppress_tokens": [4],
        "transformers_version": "5.0.0",
    }
    write(folder, "generation_config.json", given)
    write(folder, "config.json", {"eos_token_id": 7})
    assert text_files(folder).generation == GenerationDefaults(
        (3, 1), 0, True, 0.6, 20, 0.95, 0.05, 99, ("repetition_penalty", "suppress_tokens")
    )


def test_defaults_come_back_from_json_as_they_went():
    for defaults in (GenerationDefaults(), GenerationDefaults((1, 2), 0, False, 0.5, 3, 0.5, 0.1, 9, ("num_beams",))):
        assert GenerationDefaults.from_json(json.loads(json.dumps(defaults.to_json())), "here") == defaults


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of ours with the tokenizer, template and defaults of a chat model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer: Tokenizer = byte_level()
    memory = [{"type": "window", "window": 4}]
    config = DecoderConfig(16, layers=1, heads=2, memory=memory, vocab_size=tokenizer.get_vocab_size())
    save_checkpoint(Decoder(config), folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    write(folder, "tokenizer_config.json", {"chat_template": chat_templates.CHATML, "eos_token": "</s>"})
    write(folder, "generation_config.json", {"temperature": 0.5, "num_beams": 4})
    return folder


def test_an_export_carries_all_of_it_and_says_what_it_cannot_do(checkpoint, tmp_path):
    said: list[str] = []
    export_bundle(load_source(str(checkpoint)), tmp_path / "bundle", ExportOptions(verify=False), announce=said.append)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.file("chat_template.jinja").read_text() == chat_templates.CHATML
    assert bundle.manifest.tokenizer == "tokenizer.json"
    assert bundle.manifest.special_tokens == {"eos_token": "</s>"}
    assert bundle.manifest.generation == GenerationDefaults((1,), temperature=0.5, ignored=("num_beams",))
    assert any("num_beams" in line for line in said)
