"""Generating text: feed a prompt to a stream, then draw one token after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgemem.errors import InputError
from edgemem.text.detokenizer import Detokenizer
from edgemem.text.sampling import Sampler
from edgemem.text.stop_text import StopText

EndReason = Literal["eos", "stop", "max_tokens", "interrupt"]


class TokenStream(Protocol):
    """The calls of :class:`edgemem.Stream` that :func:`generate` makes. A wrapper with the same calls works too."""

    def feed(self, x: Any, outputs: Literal["last", "none"]) -> NDArray[Any] | None:
        """See :meth:`edgemem.Stream.feed`."""

    def step(self, x: Any) -> NDArray[Any]:
        """See :meth:`edgemem.Stream.step`."""

    def step_top(self, x: Any) -> tuple[NDArray[Any], NDArray[Any]]:
        """See :meth:`edgemem.Stream.step_top`."""


class Piece(NamedTuple):
    """One step of a generation.

    Attributes:
        token: The token that was drawn; ``None`` for text that was held back and is released at the end.
        text: The text that the token completes, which may be empty. It never ends inside a character.
    """

    token: int | None
    text: str


def generate(
    stream: TokenStream,
    prompt: ArrayLike,
    sampler: Sampler,
    detokenizer: Detokenizer | None = None,
    *,
    max_tokens: int | None = None,
    end_ids: Collection[int] = (),
    stop_texts: Sequence[str] = (),
    stop: Callable[[], bool] = lambda: False,
    chunk: int = 256,
) -> Generation:
    """Continue a prompt on a stream. Nothing runs until the result is iterated.

    Generations on different streams may run in different threads, each with its own sampler and detokenizer.

    Args:
        stream: A stream with batch 1 of a model whose output is one logit for each token.
        prompt: Token ids ``[N]``; 1 or more.
        sampler: Draws a token from the logits. With temperature 0 the device sends only the largest logit.
        detokenizer: Turns the tokens into text, see :meth:`Tokenizer.detokenizer`; without one every text is empty.
        max_tokens: Draw at most this many tokens; ``None`` sets no limit.
        end_ids: Tokens that end the text. They have no text themselves.
        stop_texts: Strings that end the text. No part of them is given out.
        stop: Called before each step and each chunk of the prompt; ``True`` ends the generation there. The stream's
            state is then complete, and :attr:`Generation.unread` holds what it has not read.
        chunk: Feed at most this many tokens of the prompt between two calls of ``stop``.

    Raises:
        InputError: The prompt is empty, ``max_tokens`` or ``chunk`` is below 1, or a stop text is empty.
    """
    ids = np.asarray(prompt)
    if ids.ndim != 1 or ids.size == 0:
        raise InputError(f"a prompt is one row of 1 or more token ids, got shape {list(ids.shape)}.")
    if chunk < 1 or (max_tokens is not None and max_tokens < 1):
        raise InputError(f"max_tokens and chunk must be 1 or more, got {max_tokens} and {chunk}.")
    settings = (max_tokens, frozenset(end_ids), StopText(stop_texts), stop, chunk)
    return Generation(stream, ids, sampler, detokenizer, *settings)


@dataclass(eq=False, repr=False)
class Generation(Iterator[Piece]):
    """A text that is being generated: iterate to run it. Its figures can be read at any time, also after an error.

    Attributes:
        prompt_tokens: Tokens of the prompt that the stream has read.
        tokens: Tokens drawn.
        pending: The token drawn last, while the stream has not read it.
        ended_by: ``"eos"`` (one of ``end_ids``), ``"stop"`` (a stop text), ``"max_tokens"`` or ``"interrupt"`` (the
            ``stop`` callback); ``None`` before the end and after an error.
        prefill_seconds: Time to read the prompt.
        decode_seconds: Time from the first token to the last.
    """

    _stream: TokenStream
    _prompt: NDArray[Any]
    _sampler: Sampler
    _detokenizer: Detokenizer | None
    _max_tokens: int | None
    _end_ids: frozenset[int]
    _stop_text: StopText
    _stop: Callable[[], bool]
    _chunk: int
    prompt_tokens: int = 0
    tokens: int = 0
    pending: int | None = None
    ended_by: EndReason | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def __post_init__(self) -> None:
        self._pieces = self._run()

    @property
    def stopped_at(self) -> str | None:
        """The stop text that ended the generation."""
        return self._stop_text.found if self.ended_by == "stop" else None

    @property
    def unread(self) -> list[int]:
        """Tokens that the stream has not read: the rest of the prompt, and the token drawn last.

        Feed them first when you continue the stream.
        """
        drawn = [] if self.pending is None else [self.pending]
        return [*self._prompt[self.prompt_tokens :].tolist(), *drawn]

    def __next__(self) -> Piece:
        return next(self._pieces)

    def _run(self) -> Iterator[Piece]:
        failure: Exception | None = None
        try:
            token = self._first()
            began = time.perf_counter()
            while token is not None:
                self.tokens += 1
                self.pending = token
                is_end = token in self._end_ids
                piece = Piece(token, "" if is_end else self._text_of(token))
                if is_end:
                    self.ended_by = "eos"
                elif self._stop_text.found is not None:
                    self.ended_by = "stop"
                elif self.tokens == self._max_tokens:
                    self.ended_by = "max_tokens"
                self.decode_seconds = time.perf_counter() - began
                yield piece
                token = None if self.ended_by else self._next(token)
        # The text before an error was drawn all the same.
        except Exception as error:
            failure = error
        if rest := self._text_held():
            yield Piece(None, rest)
        if failure is not None:
            raise failure

    def _text_of(self, token: int) -> str:
        return "" if self._detokenizer is None else self._stop_text.push(self._detokenizer.push(token))

    def _text_held(self) -> str:
        last = "" if self._detokenizer is None else self._stop_text.push(self._detokenizer.finish())
        return last + self._stop_text.finish()

    def _is_stopped(self) -> bool:
        if self._stop():
            self.ended_by = "interrupt"
        return self.ended_by is not None

    def _first(self) -> int | None:
        """Feed the prompt and draw the first token; ``None`` if it was stopped."""
        logits: NDArray[Any] | None = None
        size = len(self._prompt)
        for start in range(0, size, self._chunk):
            if self._is_stopped():
                return None
            tokens = self._prompt[start : start + self._chunk]
            began = time.perf_counter()
            logits = self._stream.feed(tokens, "none" if start + self._chunk < size else "last")
            self.prefill_seconds += time.perf_counter() - began
            self.prompt_tokens += len(tokens)
        assert logits is not None
        return self._sampler(logits[0])

    def _next(self, token: int) -> int | None:
        """Feed one token and draw the next; ``None`` if it was stopped."""
        if self._is_stopped():
            return None
        if self._sampler.temperature == 0:
            values, ids = self._stream.step_top(token)
            self.pending = None
            return int(ids[0][self._sampler(values[0])])
        logits = self._stream.step(token)[0]
        self.pending = None
        return self._sampler(logits)
