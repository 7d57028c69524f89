"""The HTTP endpoints: OpenAI's, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from functools import cached_property
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from edgemem.console import printable
from edgemem.errors import EdgememError
from edgemem.machine.memory import resident_bytes
from edgemem.reading import parse_json
from edgemem.serve.completions import parse_request
from edgemem.serve.errors import RequestError, error_code, error_json, error_status
from edgemem.serve.host import Host
from edgemem.serve.log import log
from edgemem.serve.texts import Text, require_running

_LOOK_EVERY = 64
"""Tokens between two looks whether a client that waits for a whole text is still there."""


class Api:
    """The endpoints of one host.

    Args:
        host: What is served.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def refused(self, error: Exception) -> Response:
        """The response for a request that failed."""
        code = error_code(error)
        self._host.metrics.errors.labels(code).inc()
        if not isinstance(error, EdgememError):
            log("internal_error", error=printable(f"{type(error).__name__}: {error}"))
        return JSONResponse({"error": error_json(error)}, error_status(error))

    async def not_found(self, request: Request, error: Exception) -> Response:
        """The response for an address at which there is nothing."""
        return self.refused(RequestError("not_found", "there is nothing at this address.", status=404))

    async def wrong_method(self, request: Request, error: Exception) -> Response:
        """The response for a method that an address does not have."""
        return self.refused(RequestError("wrong_method", f"{request.method} is not for this address.", status=405))

    async def health(self, request: Request) -> Response:
        """``GET /healthz``: the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """``GET /readyz``: models are loaded, and the server is not stopping."""
        stopping = self._host.stopping
        return JSONResponse({"status": "stopping" if stopping else "ready"}, 503 if stopping else 200)

    async def metrics(self, request: Request) -> Response:
        """``GET /metrics``, for Prometheus."""
        pools = {name: model.hub.figures() for name, model in self._host.models.items()}
        return Response(self._host.metrics.text(pools), media_type="text/plain; version=0.0.4")

    async def status(self, request: Request) -> Response:
        """``GET /v1/status``: what the page shows."""
        models = {}
        for name, model in self._host.models.items():
            contract = model.hub.pool.contract
            spec = contract.input
            takes = {
                "name": spec.name,
                "shape": list(spec.item_shape),
                "items": spec.step_items,
                "tokens": spec.is_tokens,
                "sample_rate_hz": spec.sample_rate_hz,
            }
            models[name] = {
                **model.hub.figures(),
                "takes": takes,
                "text": model.is_text,
                "chat": model.is_text and model.template is not None,
                "state_bytes": contract.state_bytes,
            }
        return JSONResponse(
            {
                "models": models,
                "stopping": self._host.stopping,
                "resident_bytes": resident_bytes(),
                "joules": self._host.metrics.joules_by_sensor(),
            }
        )

    async def page(self, request: Request) -> Response:
        """``GET /``: the board, live."""
        policy = "default-src 'none'; script-src 'unsafe-inline' blob:; style-src 'unsafe-inline'; "
        policy += "connect-src 'self'; img-src data:"
        return HTMLResponse(self._page, headers={"Content-Security-Policy": policy, "X-Frame-Options": "DENY"})

    @cached_property
    def _page(self) -> str:
        return resources.files("edgemem.serve").joinpath("page.html").read_text(encoding="utf-8")

    async def models(self, request: Request) -> Response:
        """``GET /v1/models``."""
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "edgemem"} for name in self._host.models]
        return JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        return await self._complete(request, chat=True)

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        return await self._complete(request, chat=False)

    async def _complete(self, request: Request, *, chat: bool) -> Response:
        try:
            require_running(self._host)
            body = await self._body(request)
            if body.get("model") is None:
                raise RequestError("no_model", "the request names no model.", hint="GET /v1/models lists them.")
            model = self._host.model(body["model"])
            asked = await asyncio.to_thread(parse_request, body, model, chat=chat)
            answer = _Answer(Text(self._host, model, asked))
            pieces = answer.text.pieces()
            first = await anext(pieces, None)  # errors of a text that cannot begin have a status of their own
            if asked.streamed:
                return StreamingResponse(answer.events(first, pieces), media_type="text/event-stream")
            said, count = first or "", 0
            async for piece in pieces:
                said, count = said + piece, count + 1
                if count % _LOOK_EVERY == 0 and await request.is_disconnected():
                    await pieces.aclose()
            return JSONResponse(answer.whole(said))
        except Exception as error:
            return self.refused(error)

    async def _body(self, request: Request) -> dict[str, Any]:
        data, limit = bytearray(), self._host.options.message_bytes
        if "json" not in request.headers.get("content-type", ""):
            raise RequestError("not_json", "the body must be application/json.", status=415)
        async for part in request.stream():
            data += part
            if len(data) > limit:
                raise RequestError("too_large", f"the body has more than {limit:,} bytes.", status=413)
        try:
            body = parse_json(data.decode())
        except (ValueError, RecursionError) as error:
            raise RequestError("malformed_json", f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise RequestError("malformed_json", "the body is not a JSON object.")
        return body


class _Answer:
    """A text in the form of OpenAI's objects."""

    def __init__(self, text: Text) -> None:
        self.text, self._chat = text, text.request.chat
        kind = "chatcmpl" if self._chat else "cmpl"
        self._facts = {"id": f"{kind}-{uuid.uuid4().hex}", "created": int(time.time()), "model": text.model.name}

    def whole(self, said: str) -> dict[str, Any]:
        """The object of a text that is done."""
        own = {"message": {"role": "assistant", "content": said, "refusal": None}} if self._chat else {"text": said}
        choice = {"index": 0, **own, "logprobs": None, "finish_reason": self.text.finish_reason}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._facts, "object": kind, "choices": [choice], "usage": self.text.usage}

    async def events(self, first: str | None, pieces: AsyncIterator[str]) -> AsyncIterator[str]:
        """Server-sent events: a text piece by piece."""
        try:
            if self._chat:
                yield self._event({"delta": {"role": "assistant", "content": ""}})
            if first:
                yield self._piece(first)
            async for piece in pieces:
                if piece:
                    yield self._piece(piece)
        except Exception as error:
            yield f"data: {json.dumps({'error': error_json(error)})}\n\n"
            return
        yield self._event({"delta": {}} if self._chat else {"text": ""}, self.text.finish_reason)
        if self.text.request.with_usage:
            yield self._line({"choices": [], "usage": self.text.usage})
        yield "data: [DONE]\n\n"

    def _piece(self, said: str) -> str:
        return self._event({"delta": {"content": said}} if self._chat else {"text": said})

    def _event(self, own: dict[str, Any], reason: str | None = None) -> str:
        return self._line({"choices": [{"index": 0, **own, "logprobs": None, "finish_reason": reason}]})

    def _line(self, fields: dict[str, Any]) -> str:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return f"data: {json.dumps({**self._facts, 'object': kind, **fields})}\n\n"
