"""Text to token ids and back, also one token at a time.

A bundle's manifest names its tokenizer: ``"bytes"`` for models that read UTF-8 bytes, or a ``tokenizer.json`` in the
bundle, which the ``tokenizers`` package reads alone.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgemem.bundle import Bundle
from edgemem.errors import BundleError, InputError, MissingDependencyError

if TYPE_CHECKING:
    import tokenizers

BYTES = "bytes"
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character is at most 4 bytes long. Twice that without a whole character is not text, and is let through as it is.
_MOST_HELD = 8


class Detokenizer(ABC):
    """Turns token ids into text as they come; a character is given out when it is whole."""

    @abstractmethod
    def push(self, token: int) -> str:
        """The text that ``token`` completes, which may be empty."""

    @abstractmethod
    def finish(self) -> str:
        """The text of what is still held back; a broken character comes as U+FFFD."""


class Tokenizer(ABC):
    """Text to token ids and back."""

    @abstractmethod
    def encode(self, text: str, *, start: bool = True) -> NDArray[np.int64]:
        """Token ids ``[N]`` of ``text``.

        Args:
            text: Any text. Bytes that are not UTF-8 may stand in it as surrogate escapes (PEP 383).
            start: Whether the text begins a stream, so that the tokenizer adds the special tokens that belong there.

        Raises:
            InputError: The tokenizer cannot represent the text.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``; special tokens have none."""

    @abstractmethod
    def detokenizer(self) -> Detokenizer:
        """A new detokenizer, for one stream of tokens."""


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8. Ids above are special tokens: they have no text."""

    def encode(self, text: str, *, start: bool = True) -> NDArray[np.int64]:
        """See :meth:`Tokenizer.encode`; surrogate escapes become the bytes they stand for."""
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InputError(f"the text holds U+{ord(text[error.start]):04X} at {error.start}, no character.") from None
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """See :meth:`Tokenizer.decode`."""
        return bytes(token for token in tokens if 0 <= token < 256).decode("utf-8", "replace")

    def detokenizer(self) -> Detokenizer:
        """See :meth:`Tokenizer.detokenizer`."""
        return _ByteDetokenizer()


class _ByteDetokenizer(Detokenizer):
    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if 0 <= token < 256 else ""

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class JsonTokenizer(Tokenizer):
    """A ``tokenizer.json``, read by the ``tokenizers`` package.

    Args:
        path: The file.

    Raises:
        MissingDependencyError: The ``tokenizers`` package is not installed.
        BundleError: The file is not one that it can read.
    """

    def __init__(self, path: Path) -> None:
        try:
            import tokenizers
        except ImportError:
            raise MissingDependencyError(
                f"{path.name} needs the tokenizers package.", hint='Install it with: pip install "edgemem[text]"'
            ) from None
        try:
            self._tokenizer: tokenizers.Tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # The package raises plain Exception for every fault in the file.
        except Exception as error:
            raise BundleError(f"{path} is not a tokenizer: {error}") from error

    def encode(self, text: str, *, start: bool = True) -> NDArray[np.int64]:
        """See :meth:`Tokenizer.encode`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not UTF-8 (character {error.start}), which this model's tokenizer needs."
            ) from None
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=start).ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """See :meth:`Tokenizer.decode`."""
        return str(self._tokenizer.decode(list(tokens)))

    def detokenizer(self) -> Detokenizer:
        """See :meth:`Tokenizer.detokenizer`."""
        return _PrefixDetokenizer(self)


class _PrefixDetokenizer(Detokenizer):
    """Gives out what one more token adds to the text of the few tokens before it.

    A token's text can depend on the tokens before it (a leading space, a character in several tokens), so a token is
    never decoded alone: ``_tokens`` begins with the tokens given out last, of which ``_given`` is the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._context = 0
        self._given = ""

    def push(self, token: int) -> str:
        self._tokens.append(token)
        text = self._tokenizer.decode(self._tokens)
        incomplete = len(text) <= len(self._given) or text.endswith(_REPLACEMENT)
        if incomplete and len(self._tokens) - self._context < _MOST_HELD:
            return ""
        return self._give(text)

    def finish(self) -> str:
        return self._give(self._tokenizer.decode(self._tokens))

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        self._tokens = self._tokens[self._context :]
        self._context = len(self._tokens)
        self._given = self._tokenizer.decode(self._tokens)
        return new


def open_tokenizer(bundle: Bundle) -> Tokenizer | None:
    """The bundle's tokenizer, or ``None`` where the model's tokens are not text.

    Raises:
        MissingDependencyError: The tokenizer needs a package that is not installed.
        BundleError: The tokenizer's file cannot be read.
    """
    name = bundle.manifest.tokenizer
    if name is None:
        return None
    return ByteTokenizer() if name == BYTES else JsonTokenizer(bundle.file(name))


class StopText:
    """Cuts a stream of text at the first of several stop strings, of which no part is ever given out.

    Args:
        stops: The stop strings; none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise InputError("a stop string is empty.")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that is sure to come before a stop string. After :attr:`found` is set it is always empty."""
        if self.found is not None:
            return ""
        self._held += text
        starts = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            at, self.found = min(starts, key=lambda start: start[0])
            given, self._held = self._held[:at], ""
            return given
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        given, self._held = self._held[:cut], self._held[cut:]
        return given

    def finish(self) -> str:
        """What was held back in case a stop string was coming."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, stop: str) -> int:
        """Length of the longest beginning of ``stop`` that the held text ends with."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if self._held.endswith(stop[:size])), 0)
