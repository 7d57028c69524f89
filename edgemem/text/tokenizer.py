"""Text to token ids and back.

A bundle's manifest names its tokenizer: ``"bytes"`` for models that read UTF-8 bytes, or a ``tokenizer.json`` in the
bundle, which the ``tokenizers`` package reads.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgemem.bundle import Bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.overrides import override
from edgemem.reading import MOST_TEXT_BYTES
from edgemem.text.detokenizer import ByteDetokenizer, Detokenizer, PrefixDetokenizer

if TYPE_CHECKING:
    import tokenizers

T = TypeVar("T")
BYTES = "bytes"
_TRIED = 256
_ANCHOR = "\n"  # no tokenizer joins it with the word after it


class Tokenizer(ABC):
    """Text to token ids and back."""

    @abstractmethod
    def encode(self, text: str, *, start: bool = True, special_tokens: bool = True) -> NDArray[np.int64]:
        """Token ids ``[N]`` of ``text``.

        Args:
            text: Any text. It may hold bytes that are not UTF-8 as surrogate escapes (PEP 383).
            start: Whether the text begins a stream. Otherwise it continues one: neither special tokens nor the blank
                that some tokenizers put before a text are added.
            special_tokens: Whether the tokenizer adds the special tokens that belong before a text. A rendered chat
                template already contains them.

        Raises:
            InputError: The tokenizer cannot represent the text.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``. Special tokens have no text."""

    @abstractmethod
    def detokenizer(self, context: Iterable[int] = ()) -> Detokenizer:
        """A new detokenizer, for one stream of tokens.

        Args:
            context: The tokens ``[N]`` before the first, such as a prompt. A token's leading blank, or the rest of a
                character, may depend on them.
        """

    @abstractmethod
    def is_control(self, token: int) -> bool:
        """Whether ``token`` is a marker without text, such as the start of a text or the end of a turn."""


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8. Higher ids are special tokens, which have no text."""

    def encode(self, text: str, *, start: bool = True, special_tokens: bool = True) -> NDArray[np.int64]:
        """See :meth:`Tokenizer.encode`; surrogate escapes become the bytes they stand for."""
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            code = f"U+{ord(text[error.start]):04X}"
            raise InputError(f"the text contains {code} at index {error.start}, which is not a character.") from None
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token for token in tokens if 0 <= token < 256).decode("utf-8", "replace")

    @override
    def detokenizer(self, context: Iterable[int] = ()) -> Detokenizer:
        return ByteDetokenizer()

    @override
    def is_control(self, token: int) -> bool:
        return token > 255


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``, read by the ``tokenizers`` package.

    Args:
        path: The file.
        content: What the file holds, if that has been read already.

    Raises:
        MissingDependencyError: The ``tokenizers`` package is not installed.
        BundleError: The package cannot read the file.
    """

    def __init__(self, path: Path, content: bytes | None = None) -> None:
        try:
            import tokenizers
        except ImportError:
            raise MissingDependencyError(
                f"{path.name} needs the tokenizers package.", hint=how_to_install("tokenizers")
            ) from None
        self._path = path
        made = tokenizers.Tokenizer
        with _panics_unprinted():
            self._tokenizer: tokenizers.Tokenizer = (
                self._ask(made.from_file, str(path)) if content is None else self._ask(made.from_buffer, content)
            )
            # Some files still ask for the truncation and padding of training batches. A stream needs neither.
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            added = self._ask(self._tokenizer.get_added_tokens_decoder)
            self._control = frozenset(added)
            self._skipped = frozenset(token for token, entry in added.items() if entry.special)
            alone, after = self._ids("a"), self._ids(f"{_ANCHOR}a")
            self._marks_start = after[len(after) - len(alone) :] != alone
            for token in (*alone, *range(min(_TRIED, self._tokenizer.get_vocab_size()))):
                self.decode([token])  # so that a decoder that panics is refused now

    def encode(self, text: str, *, start: bool = True, special_tokens: bool = True) -> NDArray[np.int64]:
        """See :meth:`Tokenizer.encode`. Special tokens that would close the text are left out."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not UTF-8 (character {error.start}), which this model's tokenizer needs."
            ) from None
        if not start:
            ids = self._continuing_ids(text)
        else:
            encoding = self._ask(self._tokenizer.encode, text, add_special_tokens=special_tokens)
            mask = encoding.special_tokens_mask
            # The text continues, so the special tokens after its last token, which close it, are dropped.
            ids = encoding.ids[: len(mask) - mask[::-1].index(0)] if 0 in mask else []
            if mask and not ids:
                ids = self._before_text()
        return np.asarray(ids, dtype=np.int64)

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._ask(self._tokenizer.decode, list(tokens)))

    @override
    def detokenizer(self, context: Iterable[int] = ()) -> Detokenizer:
        return PrefixDetokenizer(self.decode, self._skipped, context)

    @override
    def is_control(self, token: int) -> bool:
        return token in self._control

    def _ask(self, call: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """What the package answers. It raises a plain ``Exception`` for every error in the file, and panics for some.

        Raises:
            BundleError: The package cannot work with the file.
        """
        try:
            return call(*arguments, **options)
        except BaseException as error:
            # The class of a panic of Rust, which cannot be imported, derives from BaseException alone.
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise BundleError(f"{self._path} is not a tokenizer that works: {error}") from error

    def _ids(self, text: str) -> list[int]:
        """Ids of ``text`` without special tokens."""
        return list(self._ask(self._tokenizer.encode, text, add_special_tokens=False).ids)

    def _before_text(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text; in an empty text they look like those after it."""
        encoding = self._ask(self._tokenizer.encode, "a", add_special_tokens=True)
        mask = encoding.special_tokens_mask
        return list(encoding.ids[: mask.index(0)]) if 0 in mask else []

    def _continuing_ids(self, text: str) -> list[int]:
        """Ids of text that continues a stream. If the tokenizer marks a text's start, an anchor takes the mark."""
        if self._marks_start and text:
            for anchor in (_ANCHOR, "a"):
                # If the anchor and the text were merged, or the anchor is an unknown token, try the next anchor.
                alone, ids = self._ids(anchor), self._ids(anchor + text)
                if ids[: len(alone)] == alone and anchor in self.decode(alone):
                    return ids[len(alone) :]
        return self._ids(text)


@contextlib.contextmanager
def _panics_unprinted() -> Iterator[None]:
    """Drop what is written to stderr: Rust prints a panic there by itself, before it becomes our error."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # stderr is closed
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def open_tokenizer(bundle: Bundle) -> Tokenizer | None:
    """The bundle's tokenizer, or ``None`` if the model's tokens are not text.

    Raises:
        MissingDependencyError: The tokenizer needs a package that is not installed.
        BundleError: The tokenizer's file cannot be read.
    """
    name = bundle.manifest.tokenizer
    if name is None:
        return None
    return ByteTokenizer() if name == BYTES else JsonTokenizer(bundle.file(name), bundle.read(name, MOST_TEXT_BYTES))
