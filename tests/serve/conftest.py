"""A real server on loopback, in a thread, with two small bundles."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("websockets")
pytest.importorskip("prometheus_client")

import uvicorn
from websockets.sync.client import ClientConnection, connect

from edgemem.serve import Host, ServeOptions, build_app
from tests.handmade import write_reciter, write_summer


class Running:
    """A server that answers."""

    def __init__(self, folders: list[Path], root: Path = Path("/"), **options: Any) -> None:
        self.host = Host(folders, ServeOptions(port=0, **options), threads=1, root=root)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            build_app(self.host),
            log_config=None,
            ws_max_size=self.host.options.message_bytes,
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
            time.sleep(0.01)

    def connect(self, path: str, **options: Any) -> ClientConnection:
        return connect(f"ws://127.0.0.1:{self.port}/v1/streams{path}", **options)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        reply = connection.getresponse()
        text = reply.read().decode()
        is_json = "json" in reply.headers.get("content-type", "")
        return reply.status, json.loads(text) if is_json else text

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


@contextlib.contextmanager
def running(folders: list[Path], **options: Any) -> Iterator[Running]:
    server = Running(folders, **options)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def summer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_summer(tmp_path_factory.mktemp("serve") / "summer")


@pytest.fixture(scope="session")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("serve") / "reciter")


@pytest.fixture(scope="module")
def server(summer: Path, reciter: Path) -> Iterator[Running]:
    with running([summer, reciter], slots=4, client_streams=6, message_bytes=20_000) as server:
        yield server


def ask(socket: ClientConnection, **message: Any) -> Any:
    socket.send(json.dumps(message))
    return json.loads(socket.recv(10))
