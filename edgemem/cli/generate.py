"""``edgemem run`` for models of tokens: feed the prompt, then draw token after token."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.cli.interrupt import Interrupt
from edgemem.runtimes import Stream
from edgemem.sampling import Sampler
from edgemem.text import StopText, Tokenizer

_CONTEXT = 32  # tokens: more than a detokenizer looks back


@dataclass
class Generation:
    """Draws tokens and writes their text; what it has done so far can be read at any time, also after an error.

    Attributes:
        stream: The stream to advance.
        sampler: Draws a token from the logits.
        tokenizer: Makes text of tokens; without one, ids are written with blanks between them.
        stops: Where the text ends before ``max_tokens``.
        write: Takes the text as it comes.
        interrupt: Ends the generation between two steps.
        piece: Most tokens of the prompt in one call.
        context: Tokens before the prompt, of which the last few are enough; after the run, those it ended with.
        pending: The token drawn last, which the stream has not read yet: a resumed stream must read it first.
        ends: Tokens that end the text and have none themselves.
        continues: Whether the text goes on with the prompt's, so that a blank between the two belongs to it.
        prompt_tokens: Tokens fed before the first was drawn.
        tokens: Tokens drawn.
        steps: Calls of ``stream.step``: one fewer than tokens, the first comes from the prompt.
        prefill_seconds: Time of the prompt.
        decode_seconds: Time of everything after it: steps, draws and writing.
        ended_by: ``"max_tokens"``, ``"stop"`` or ``"eos"``; ``None`` while it runs or when it was cut short.
        stopped_at: The stop string that ended it.
    """

    stream: Stream
    sampler: Sampler
    tokenizer: Tokenizer | None
    stops: tuple[str, ...]
    write: Callable[[str], None]
    interrupt: Interrupt
    piece: int
    context: Sequence[int] = ()
    pending: int | None = None
    ends: Set[int] = frozenset()
    continues: bool = True
    prompt_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    ended_by: str | None = field(default=None, init=False)
    stopped_at: str | None = field(default=None, init=False)

    def run(self, prompt: NDArray[np.int64], max_tokens: int, drawn: Callable[[int], None]) -> None:
        """Feed ``prompt`` ``[N]``, then draw ``max_tokens`` tokens (0: without end); ``drawn`` gets each of them.

        Raises:
            KeyboardInterrupt: A signal came. The text drawn so far is written.
        """
        last = deque([*self.context, *prompt[-_CONTEXT:].tolist()], maxlen=_CONTEXT)
        self.context = last
        detokenizer = self.tokenizer.detokenizer(tuple(last) if self.continues else ()) if self.tokenizer else None
        stop = StopText(self.stops)
        began = None
        try:
            # islice looks no further than its end: the last token is drawn, not fed.
            for token in itertools.islice(self._tokens(prompt), max_tokens or None):
                began = began or time.perf_counter()
                self.tokens += 1
                self.pending = token
                last.append(token)
                drawn(token)
                if token in self.ends:
                    self.ended_by = "eos"
                    return
                text = detokenizer.push(token) if detokenizer else f"{token} "
                if text := stop.push(text):
                    self.write(text)
                if stop.found is not None:
                    self.ended_by, self.stopped_at = "stop", stop.found
                    return
            self.ended_by = "max_tokens"
        finally:
            self.decode_seconds = time.perf_counter() - began if began else 0.0
            rest = stop.push(detokenizer.finish() if detokenizer else "") + stop.finish()
            if rest:
                self.write(rest)

    def _tokens(self, prompt: NDArray[np.int64]) -> Iterator[int]:
        token = self.sampler(self._prefill(prompt))
        while True:
            yield token
            self.interrupt.check()
            assert self.pending is not None
            token = self._step(self.pending)

    def _step(self, token: int) -> int:
        """Feed one token and draw the next."""
        ids: NDArray[np.int64] | None = None
        if self.sampler.temperature == 0:
            (logits,), (ids,) = self.stream.step_top(token)  # a device need not send the others
        else:
            logits = self.stream.step(token)[0]
        self.pending = None
        self.steps += 1
        drawn = self.sampler(logits)
        return drawn if ids is None else int(ids[drawn])

    def _prefill(self, prompt: NDArray[np.int64]) -> NDArray[Any]:
        # One call of feed could take all of it; in pieces, Ctrl-C need not wait for the end of a book.
        logits: NDArray[Any] | None = None
        for start in range(0, len(prompt), self.piece):
            self.interrupt.check()
            tokens = prompt[start : start + self.piece]
            is_last = start + self.piece >= len(prompt)
            began = time.perf_counter()
            logits = self.stream.feed(tokens, outputs="last" if is_last else "none")
            self.prefill_seconds += time.perf_counter() - began
            self.prompt_tokens += len(tokens)
            self.pending = None
        assert logits is not None
        row: NDArray[Any] = logits[0]
        return row
