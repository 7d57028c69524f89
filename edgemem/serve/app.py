"""The ASGI application: which address does what, and who may call it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from edgemem.errors import EdgememError
from edgemem.machine.memory import map_large_blocks
from edgemem.machine.systemd import notify
from edgemem.serve.api import Api
from edgemem.serve.errors import RequestError, error_json
from edgemem.serve.host import Host
from edgemem.serve.log import log
from edgemem.serve.sockets import Connection

_OPEN = ("/", "/healthz", "/readyz")
"""What needs no token: it holds nothing."""


def build_app(host: Host) -> ASGIApp:
    """The application of a host; its lifespan saves and releases what the host holds.

    Args:
        host: What is served.
    """
    api = Api(host)

    async def streams(socket: WebSocket) -> None:
        try:
            model = host.model(socket.query_params.get("model"))
        except EdgememError as error:
            await socket.accept()
            await socket.send_json({"op": "open", "error": error_json(error)})
            await socket.close(4404, "no such model")
            return
        await Connection(host, model, socket, socket.path_params.get("name")).run()

    routes = [
        Route("/", api.page),
        Route("/healthz", api.health),
        Route("/readyz", api.ready),
        Route("/metrics", api.metrics),
        Route("/v1/status", api.status),
        Route("/v1/models", api.models),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        WebSocketRoute("/v1/streams", streams),
        WebSocketRoute("/v1/streams/{name}", streams),
    ]
    handlers = {404: api.not_found, 405: api.wrong_method}
    return Gate(Starlette(routes=routes, lifespan=lambda _: _lifespan(host), exception_handlers=handlers), host)


@contextlib.asynccontextmanager
async def _lifespan(host: Host) -> AsyncIterator[None]:
    """Run a host's chores, and save what it holds in the end."""
    map_large_blocks()
    tasks = [asyncio.create_task(chore()) for chore in host.chores]
    notify("READY=1")
    log("ready", models=list(host.models), streams={n: len(m.hub.entries) for n, m in host.models.items()})
    yield
    notify("STOPPING=1")
    for task in tasks:
        task.cancel()
    await host.close()
    log("stopped")


class Gate:
    """Lets in who has the token, and no page of another origin.

    Args:
        app: What lies behind it.
        host: What is served.
    """

    def __init__(self, app: ASGIApp, host: Host) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse, as ASGI wants it."""
        if scope["type"] in ("http", "websocket") and (refusal := self._refusal(scope)) is not None:
            self._host.metrics.errors.labels(refusal.code).inc()
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008, "reason": refusal.code})  # becomes a 403
            else:
                await JSONResponse({"error": error_json(refusal)}, refusal.status)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> RequestError | None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin, own = headers.get("origin"), headers.get("host", "")
        if origin is not None and urlsplit(origin).netloc != own and origin not in self._host.options.origins:
            return RequestError(
                "wrong_origin", f"pages of {origin[:80]} may not connect.", status=403, hint="Start with --origin."
            )
        token = self._host.options.token
        if token is None or scope["path"] in _OPEN:
            return None
        given = headers.get("authorization", "").removeprefix("Bearer ")
        if scope["type"] == "websocket" and not given:  # a page cannot set headers
            given = (parse_qs(scope["query_string"].decode("latin-1")).get("token") or [""])[0]
        if hmac.compare_digest(given.encode(), token.encode()):
            return None
        return RequestError(
            "wrong_token", "the token is missing or wrong.", status=401, hint="Send Authorization: Bearer."
        )
