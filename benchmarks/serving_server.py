"""The server that ``serving.py`` measures: a bundle, and an echo beside it on the same stack."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import uvicorn

from edgemem.serve import Host, ServeOptions, build_app


def main(path: str, folder: str, slots: str) -> None:
    """Serve a bundle, with an echo beside it on the same stack."""
    options = ServeOptions(
        slots=int(slots), state_dir=Path(folder), messages_per_s=1e6, message_bytes=1 << 20, client_streams=100
    )
    app = build_app(Host([Path(path)], options, threads=1))

    async def with_echo(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "websocket" or scope["path"] != "/echo":
            await app(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": event["bytes"]})

    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(json.dumps({"event": "port", "port": listener.getsockname()[1]}), file=sys.stderr, flush=True)
    config = uvicorn.Config(with_echo, log_config=None, ws_max_size=1 << 20, ws_per_message_deflate=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(*sys.argv[1:])
