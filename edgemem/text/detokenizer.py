"""Tokens to text, one token at a time. A character is given out when all its bytes are known."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence, Set

from edgemem.overrides import override

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_LONGEST = 4  # bytes of a character
# Twice that without a complete character is not text, and is given out as it is.
_MOST_HELD = 2 * _LONGEST


class Detokenizer(ABC):
    """Turns one stream of token ids into text."""

    @abstractmethod
    def push(self, token: int) -> str:
        """The text that ``token`` completes, which may be empty."""

    @abstractmethod
    def finish(self) -> str:
        """The text that is still held back. An incomplete character becomes U+FFFD."""


class ByteDetokenizer(Detokenizer):
    """For tokens that are the bytes of UTF-8. Other ids have no text."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @override
    def push(self, token: int) -> str:
        return self._decoder.decode(bytes([token])) if 0 <= token < 256 else ""

    @override
    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class PrefixDetokenizer(Detokenizer):
    """Gives out what one more token adds to the text of the few tokens before it.

    A token's text can depend on the tokens before it (a leading space, a character in several tokens), so a token is
    never decoded alone: ``_tokens`` begins with the tokens given out last, of which ``_given`` is the text.

    Args:
        decode: Gives the text of a list of tokens.
        skipped: Tokens without text. They are not counted among the few.
        context: The tokens before the first.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], skipped: Set[int], context: Iterable[int]) -> None:
        self._decode = decode
        self._skipped = skipped
        self._tokens = [int(token) for token in context if token not in skipped][-2 * _MOST_HELD :]
        while self._tokens and decode(self._tokens).startswith(_REPLACEMENT):
            del self._tokens[0]
        self._context = self._complete_until()
        self._given = decode(self._tokens[: self._context])

    def _complete_until(self) -> int:
        """Where an incomplete character at the end begins; its tokens count as pushed and held back."""
        end = len(self._tokens)
        for cut in range(end, max(end - _LONGEST, -1), -1):
            if not self._decode(self._tokens[:cut]).endswith(_REPLACEMENT):
                return cut
        return end

    @override
    def push(self, token: int) -> str:
        if token in self._skipped:
            return ""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        incomplete = len(text) <= len(self._given) or text.endswith(_REPLACEMENT)
        if incomplete and len(self._tokens) - self._context < _MOST_HELD:
            return ""
        return self._give(text)

    @override
    def finish(self) -> str:
        return self._give(self._decode(self._tokens))

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        self._tokens = self._tokens[self._context :]
        self._context = len(self._tokens)
        self._given = self._decode(self._tokens)
        return new
