"""Text to token ids and back, also one token at a time.

A bundle's manifest names its tokenizer: ``"bytes"`` for models that read UTF-8 bytes, or a ``tokenizer.json`` in the
bundle, which the ``tokenizers`` package reads alone.
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
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
_ANCHOR = "\n"  # no tokenizer joins it with the word behind it
_LONGEST = 4  # bytes of a character
# Twice that without a whole character is not text, and is let through as it is.
_MOST_HELD = 2 * _LONGEST


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
    def encode(self, text: str, *, start: bool = True, special_tokens: bool = True) -> NDArray[np.int64]:
        """Token ids ``[N]`` of ``text``.

        Args:
            text: Any text. Bytes that are not UTF-8 may stand in it as surrogate escapes (PEP 383).
            start: Whether the text begins a stream. Otherwise it goes on with one, and neither special tokens nor the
                blank that some tokenizers put before a text are added.
            special_tokens: Whether the tokenizer adds the special tokens that belong before a text. A rendered chat
                template has its own.

        Raises:
            InputError: The tokenizer cannot represent the text.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``; special tokens have none."""

    @abstractmethod
    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """A new detokenizer, for one stream of tokens.

        Args:
            context: The tokens ``[N]`` that come before, whose text is known already: a token's leading blank or the
                rest of a character may depend on them.
        """

    @abstractmethod
    def is_control(self, token: int) -> bool:
        """Whether ``token`` stands for no text of its own, but was added to mark something: a start, a turn's end."""


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are the bytes of UTF-8. Ids above are special tokens: they have no text."""

    def encode(self, text: str, *, start: bool = True, special_tokens: bool = True) -> NDArray[np.int64]:
        """See :meth:`Tokenizer.encode`; surrogate escapes become the bytes they stand for."""
        try:
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InputError(f"the text holds U+{ord(text[error.start]):04X} at {error.start}, no character.") from None
        return np.frombuffer(data, dtype=np.uint8).astype(np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """See :meth:`Tokenizer.decode`."""
        return bytes(token for token in tokens if 0 <= token < 256).decode("utf-8", "replace")

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """See :meth:`Tokenizer.detokenizer`."""
        return _ByteDetokenizer()

    def is_control(self, token: int) -> bool:
        """See :meth:`Tokenizer.is_control`."""
        return token > 255


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
        # Some files keep how batches were once made for training; a stream is neither cut short nor padded.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = frozenset(added)
        self._skipped = frozenset(token for token, entry in added.items() if entry.special)
        alone, after = self._ids("a"), self._ids(f"{_ANCHOR}a")
        self._marks_start = after[len(after) - len(alone) :] != alone

    def encode(self, text: str, *, start: bool = True, special_tokens: bool = True) -> NDArray[np.int64]:
        """See :meth:`Tokenizer.encode`; special tokens that would close the text are left out."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"the text is not UTF-8 (character {error.start}), which this model's tokenizer needs."
            ) from None
        if not start:
            ids = self._continuing_ids(text)
        else:
            encoding = self._tokenizer.encode(text, add_special_tokens=special_tokens)
            mask = encoding.special_tokens_mask
            # The text goes on: what stands behind its last token would close it.
            ids = encoding.ids[: len(mask) - mask[::-1].index(0)] if 0 in mask else []
            if mask and not ids:
                ids = self._before_text()
        return np.asarray(ids, dtype=np.int64)

    def decode(self, tokens: Sequence[int]) -> str:
        """See :meth:`Tokenizer.decode`."""
        return str(self._tokenizer.decode(list(tokens)))

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """See :meth:`Tokenizer.detokenizer`."""
        return _PrefixDetokenizer(self, self._skipped, context)

    def is_control(self, token: int) -> bool:
        """See :meth:`Tokenizer.is_control`."""
        return token in self._control

    def _ids(self, text: str) -> list[int]:
        """Ids of ``text`` without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _before_text(self) -> list[int]:
        """The special tokens that the tokenizer puts before a text: of an empty one, those behind it cannot be told."""
        encoding = self._tokenizer.encode("a", add_special_tokens=True)
        mask = encoding.special_tokens_mask
        return list(encoding.ids[: mask.index(0)]) if 0 in mask else []

    def _continuing_ids(self, text: str) -> list[int]:
        """Ids of text that goes on with a stream: where a text's start is marked, what it adds behind an anchor."""
        if self._marks_start and text:
            for anchor in (_ANCHOR, "a"):
                # Where the two grow together the ids do not begin with the anchor's; an unknown anchor tells nothing.
                alone, ids = self._ids(anchor), self._ids(anchor + text)
                if ids[: len(alone)] == alone and anchor in self.decode(alone):
                    return ids[len(alone) :]
        return self._ids(text)


class _PrefixDetokenizer(Detokenizer):
    """Gives out what one more token adds to the text of the few tokens before it.

    A token's text can depend on the tokens before it (a leading space, a character in several tokens), so a token is
    never decoded alone: ``_tokens`` begins with the tokens given out last, of which ``_given`` is the text.

    Args:
        tokenizer: Decodes.
        skipped: Tokens that have no text, and must not push those that have out of the few.
        context: The tokens before the first.
    """

    def __init__(self, tokenizer: Tokenizer, skipped: Set[int], context: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._skipped = skipped
        self._tokens = [token for token in context if token not in skipped][-2 * _MOST_HELD :]
        while self._tokens and tokenizer.decode(self._tokens).startswith(_REPLACEMENT):
            del self._tokens[0]
        self._context = self._whole_until()
        self._given = tokenizer.decode(self._tokens[: self._context])

    def _whole_until(self) -> int:
        """Where the tokens of a character begin that is not whole at the end; they count as pushed and held back."""
        end = len(self._tokens)
        for cut in range(end, max(end - _LONGEST, -1), -1):
            if not self._tokenizer.decode(self._tokens[:cut]).endswith(_REPLACEMENT):
                return cut
        return end

    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
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
