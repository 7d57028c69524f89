"""Texts: a stream of the pool reads the prompt and draws tokens in a thread, and hands its pieces to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtimes.pool import PoolStream
from edgemem.serve.completions import TextRequest
from edgemem.serve.errors import RequestError
from edgemem.serve.host import Host, Model
from edgemem.serve.log import log
from edgemem.text import Conversation, Generation, generate

_FEWEST_PREFIX_TOKENS = 16
_MOST_PIECES = 256
_REASONS = {"max_tokens": "length", "eos": "stop", "stop": "stop", "interrupt": "stop"}


@dataclass
class Text:
    """A text that is being generated. Iterate over :meth:`pieces` to run it.

    Attributes:
        host: What is served.
        model: The model.
        request: What was asked for.
        restored: Tokens of the prompt that a kept prefix stood for.
        generation: Its figures, once it runs.
    """

    host: Host
    model: Model
    request: TextRequest
    restored: int = 0
    generation: Generation | None = None
    _tokens: NDArray[np.int64] = field(init=False)
    _stop: threading.Event = field(default_factory=threading.Event)
    _room: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_MOST_PIECES))

    def __post_init__(self) -> None:
        self._tokens = self.request.tokens

    @property
    def finish_reason(self) -> str:
        """Why it ended, in OpenAI's words."""
        ended = self.generation.ended_by if self.generation is not None else None
        return _REASONS.get(ended or "", "stop")

    @property
    def usage(self) -> dict[str, Any]:
        """How many tokens were read and drawn."""
        drawn = self.generation.tokens if self.generation is not None else 0
        read = len(self._tokens)
        return {
            "prompt_tokens": read,
            "completion_tokens": drawn,
            "total_tokens": read + drawn,
            "prompt_tokens_details": {"cached_tokens": self.restored},
        }

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The texts of its tokens, as they come.

        Raises:
            EdgememError: It cannot go on.
        """
        hub, name = self.model.hub, self.request.conversation
        if name is None:
            stream = await hub.lone()
            try:
                async with contextlib.aclosing(self._from(stream)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                self._stop.set()
                await asyncio.shield(asyncio.wrap_future(stream.soon.close()))
            return
        if (known := hub.entries.get(name)) is not None and known.owner is not None:
            raise RequestError("conversation_busy", f"the conversation {name!r} is in use.", status=409)
        entry = await hub.attach(name, self)
        assert entry.stream is not None
        talk = Talk(self.model, self.request, entry.note)
        self._tokens, said = talk.tokens(entry.stream.position), ""
        try:
            async with contextlib.aclosing(self._from(entry.stream)) as pieces:
                async for piece in pieces:
                    said += piece
                    yield piece
        finally:
            self._stop.set()
            if self.generation is not None:
                entry.note = talk.note(said, self.generation)
            entry.owner, entry.used_s = None, time.monotonic()

    async def _from(self, stream: PoolStream) -> AsyncGenerator[str, None]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def put(item: Any) -> None:
            while not self._room.acquire(timeout=0.2):  # the client reads slowly
                if self._is_stopped():
                    break
            loop.call_soon_threadsafe(queue.put_nowait, item)

        started_s, first = time.perf_counter(), True
        future = self.host.workers.submit(self._run, stream, put)
        try:
            while (item := await queue.get()) is not None:
                self._room.release()
                if isinstance(item, Exception):
                    raise item
                if first:
                    self.host.metrics.first_token.observe(time.perf_counter() - started_s)
                    first = False
                yield item
        finally:
            self._stop.set()
            await asyncio.shield(asyncio.wrap_future(future))
            self.host.metrics.tokens.labels("generated").inc(self.usage["completion_tokens"])
            self.host.metrics.tokens.labels("read").inc(len(self._tokens) - self.restored)

    def _run(self, stream: PoolStream, put: Any) -> None:
        """Generate, in a thread; ``put`` gets every piece, an error, and ``None`` at the end."""
        try:
            request = self.request
            tokens = self._tokens
            if tokens is request.tokens and request.prefix >= _FEWEST_PREFIX_TOKENS and stream.position == 0:
                tokens = tokens[self._read_prefix(stream) :]
            assert self.model.tokenizer is not None
            self.generation = generate(
                stream,  # type: ignore[arg-type]
                tokens,
                request.sampler,
                self.model.tokenizer.detokenizer(),
                max_tokens=request.max_tokens,
                end_ids=request.end_ids,
                stop_texts=request.stop_texts,
                stop=self._is_stopped,
                chunk=self.model.hub.pool.contract.max_chunk,
            )
            for piece in self.generation:
                put(piece.text)
        except Exception as error:
            put(error)
        put(None)

    def _read_prefix(self, stream: PoolStream) -> int:
        """Read the prompt's beginning, or restore the state behind it; how many tokens were read."""
        beginning = self.request.tokens[: self.request.prefix]
        found = self.model.prefixes.read(stream, beginning, self._is_stopped)
        self.restored = found.tokens if found.restored else 0
        if found.problem:
            log("prefix_problem", model=self.model.name, reason=found.problem)
        return found.tokens

    def _is_stopped(self) -> bool:
        return self._stop.is_set() or self.host.stopping


class Talk:
    """A conversation that goes on in a stream: only what is new is read.

    Args:
        model: The model.
        request: What was asked for.
        note: What is known of the stream; ``None`` for a new one.
    """

    def __init__(self, model: Model, request: TextRequest, note: Any) -> None:
        self._request, self._model = request, model
        facts = note if isinstance(note, dict) else {}
        self._unread: list[int] = facts.get("unread", [])
        self._talk: Conversation | None = None
        if request.chat and model.template is not None and model.tokenizer is not None:
            self._talk = Conversation(model.template, model.tokenizer, request.system)
            if facts.get("conversation") is not None:
                self._talk.restore(facts["conversation"], self._unread)

    def tokens(self, position: int) -> NDArray[np.int64]:
        """What the stream reads first, int64 ``[N]``."""
        fresh = position == 0 and not self._unread
        if self._talk is not None:
            return self._talk.say(self._request.prompt, fresh=fresh)
        assert self._model.tokenizer is not None
        ids = self._model.tokenizer.encode(self._request.prompt, start=fresh)
        ids = ids if self._request.prompt else self._request.tokens
        return np.concatenate((np.array(self._unread, np.int64), ids))

    def note(self, said: str, generation: Generation) -> dict[str, Any]:
        """What must be known to go on after ``said``."""
        ended = generation.ended_by == "eos"
        if self._talk is None:
            return {"unread": generation.unread}
        unread = generation.unread[: -1 if ended else None]
        end = generation.pending if ended else None
        self._talk.answered(said, end=end, overrun=generation.stopped_at or "", unread=unread)
        return {"unread": unread, "conversation": self._talk.to_json()}


def require_running(host: Host) -> None:
    """Refuse a new text while the server stops."""
    if host.stopping:
        raise RequestError("stopping", "the server is stopping.", status=503, hint="Try again in a moment.")
