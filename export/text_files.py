"""The files of a checkpoint that describe text: its tokenizer, its chat template, its defaults for generation.

The names of the files and of their entries are those of Hugging Face's ``transformers``.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemem.bundle import CHAT_TEMPLATE
from edgemem.errors import BundleError, ConfigError, ExportError, MissingDependencyError
from edgemem.files import read_file
from edgemem.generation_defaults import GenerationDefaults
from edgemem.reading import MOST_JSON_BYTES
from edgemem.text.chat_template import ChatTemplate
from edgemem.versioned import read_json

TOKENIZER = "tokenizer.json"

# Older tokenizer files, which only the Python code of each model family reads.
_OTHER_TOKENIZERS = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "vocab.json",
    "tekken.json",
    "*.tiktoken",
    "rwkv_vocab*.txt",
)
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class TextFiles:
    """What a bundle needs to turn text into tokens and back.

    Attributes:
        tokenizer: The text of ``tokenizer.json``; ``None`` if the checkpoint has no tokenizer.
        chat_template: The chat template; ``None`` if there is none.
        special_tokens: Text of the named special tokens: ``bos_token``, ``eos_token`` …
        generation: The defaults of ``generation_config.json``.
    """

    tokenizer: str | None = None
    chat_template: str | None = None
    special_tokens: dict[str, str] = field(default_factory=dict)
    generation: GenerationDefaults = GenerationDefaults()  # noqa: RUF009 (it cannot be changed)

    def write(self, folder: Path) -> None:
        """Write the tokenizer and the chat template to the folder of a bundle."""
        for name, text in ((TOKENIZER, self.tokenizer), (CHAT_TEMPLATE, self.chat_template)):
            if text is not None:
                (folder / name).write_text(text, encoding="utf-8")


def text_files(folder: Path) -> TextFiles:
    """Read the text files of a checkpoint's folder.

    Args:
        folder: A checkpoint of ``transformers`` or of edgemem.

    Raises:
        ExportError: The tokenizer has a kind that no device reads, or a file is damaged.
    """
    settings = _object(folder / "tokenizer_config.json")
    special = _special_tokens(settings, _object(folder / "special_tokens_map.json"))
    tokenizer = _tokenizer(folder, special)
    template = _chat_template(folder, settings)
    if template is not None and tokenizer is not None:
        _check_template(template, special, folder)
    return TextFiles(
        tokenizer=None if tokenizer is None else json.dumps(tokenizer, separators=(",", ":")),
        chat_template=template if tokenizer is not None else None,
        special_tokens=special,
        generation=_generation(folder, special, tokenizer),
    )


def _object(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if there is no such file."""
    try:
        data = read_json(path, loose=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ExportError(f"{path} holds {type(data).__name__}, wanted a JSON object.")
    return data


def _special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    """Text of the named special tokens, each from the first source that has it."""
    found: dict[str, str] = {}
    for name in _NAMED:
        for source in sources:
            value = source.get(name)
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str) and name not in found:
                found[name] = text
    return found


def _tokenizer(folder: Path, special: Mapping[str, str]) -> dict[str, Any] | None:
    """The tokenizer. The named special tokens are special in it, even if the file does not mark them."""
    path = folder / TOKENIZER
    if not path.is_file():
        others = sorted(found.name for pattern in _OTHER_TOKENIZERS for found in folder.glob(pattern))
        if not others:
            return None
        raise ExportError(
            f"{folder} has a tokenizer in {', '.join(others)}, but no {TOKENIZER}, which devices read.",
            hint="Convert it, if transformers can:\n"
            f"""python -c "from transformers import AutoTokenizer as T; t = T.from_pretrained('{folder}'); """
            f"""t.save_pretrained('{folder}')" """.rstrip()
            + f"\nor move {others[0]} out of the folder: the bundle then takes and outputs token ids.",
        )
    data = _object(path)
    if not isinstance(data.get("model"), dict):
        raise ExportError(f"{path} is not a tokenizer: it has no model.")
    with _reading_tokens(path):
        _add_named(data, special)
    return data


@contextlib.contextmanager
def _reading_tokens(path: Path) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise ExportError(f"{path} is not a tokenizer: its tokens are malformed ({error!r}).") from error


def _add_named(data: dict[str, Any], special: Mapping[str, str]) -> None:
    """Make the named special tokens special, as transformers does when it loads a tokenizer."""
    added = {entry.get("content"): entry for entry in data.get("added_tokens") or []}
    for text in special.values():
        if text in added:
            added[text]["special"] = True
        elif (token := token_id(data, text)) is not None:
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            data.setdefault("added_tokens", []).append({"id": token, "content": text, **plain, "special": True})


def token_id(tokenizer: Mapping[str, Any], text: str) -> int | None:
    """Id of the token with that text in the object of a ``tokenizer.json``, or ``None``."""
    for entry in tokenizer.get("added_tokens") or []:
        if entry.get("content") == text:
            return int(entry["id"])
    vocabulary = tokenizer["model"].get("vocab")
    if isinstance(vocabulary, dict):
        token = vocabulary.get(text)
        return None if token is None else int(token)
    # Unigram models have a list of [text, score].
    return next((place for place, (piece, _) in enumerate(vocabulary or []) if piece == text), None)


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        try:
            return read_file(path, MOST_JSON_BYTES).decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"{path} cannot be read: {error}") from error
    given = settings.get("chat_template") or _object(folder / "chat_template.json").get("chat_template")
    if isinstance(given, list):
        try:
            named = {str(entry["name"]): entry["template"] for entry in given}
        except (TypeError, KeyError) as error:
            raise ExportError(f"{folder / 'tokenizer_config.json'}: chat_template is malformed: {error!r}.") from error
        given = next(iter(named.values())) if len(named) == 1 else named.get("default")
        if given is None and named:
            raise ExportError(
                f"{folder / 'tokenizer_config.json'}: none of the chat templates {', '.join(named)} is named default.",
                hint=f"Write the one to use to {path}.",
            )
    if given is not None and not isinstance(given, str):
        raise ExportError(f"{folder / 'tokenizer_config.json'}: chat_template is {type(given).__name__}, wanted text.")
    return given


def _check_template(template: str, special: Mapping[str, str], folder: Path) -> None:
    """Refuse a malformed template now, not on the device."""
    try:
        ChatTemplate(template, special, f"the chat template of {folder}")
    except MissingDependencyError:
        return  # jinja2 is not installed here; rendering raises the same error
    except BundleError as error:
        raise ExportError(error.message) from error


def _generation(folder: Path, special: Mapping[str, str], tokenizer: dict[str, Any] | None) -> GenerationDefaults:
    path = folder / "generation_config.json"
    given, model = _object(path), _object(folder / "config.json")
    text = model.get("text_config")
    sources = (given, model, text if isinstance(text, dict) else {})
    for name in ("eos", "bos"):
        key = f"{name}_token_id"
        token = next((source[key] for source in sources if source.get(key) is not None), None)
        if token is None and tokenizer is not None and f"{name}_token" in special:
            with _reading_tokens(folder / TOKENIZER):
                token = token_id(tokenizer, special[f"{name}_token"])
        given[key] = token
    try:
        return GenerationDefaults.from_hugging_face(given, str(path))
    except ConfigError as error:
        raise ExportError(error.message, hint="Correct the value in the file, or remove it.") from error
