"""The way to `edgemem serve`, over a WebSocket."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import numpy as np

from edgemem.client.link import LinkLostError, Op, numbers
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.wire import DTYPES, pack, unpack

try:
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    from websockets.sync.client import ClientConnection, connect
except ImportError as error:  # pragma: no cover
    raise MissingDependencyError("websockets is not installed.", hint=how_to_install("websockets")) from error

_FOR_AGES_S = 600.0


class ServeLink:
    """A WebSocket to one stream.

    Args:
        server: Its address, ``"http://HOST:PORT"``.
        stream: The stream's name.
        model: Which model; ``None``: the server's first.
        token: What it asks for.
    """

    def __init__(self, server: str, stream: str, model: str | None, token: str | None) -> None:
        query = "" if model is None else f"?model={quote(model)}"
        self._url = f"ws{server.removeprefix('http')}/v1/streams/{quote(stream)}{query}"
        self._headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._open = ExitStack()
        self._socket: ClientConnection | None = None

    def open(self, snapshot: bytes | None) -> None:
        """See :class:`~edgemem.client.link.Link`."""
        self._connect()
        if snapshot is None:
            self._ask({"op": "reset"})
        else:
            self._ask({"op": "restore"}, snapshot)

    def resume(self) -> bytes | None:
        """See :class:`~edgemem.client.link.Link`."""
        return self._take_snapshot() if self._connect()["position"] else None

    def send(self, op: Op, x: Any, outputs: str, wants_snapshot: bool) -> tuple[Any, bytes | None]:
        """See :class:`~edgemem.client.link.Link`."""
        header = {"op": op} if op == "step" else {"op": op, "outputs": outputs}
        if isinstance(x, dict):
            found = self._ask({**header, "x": {name: numbers(value, name).tolist() for name, value in x.items()}})
        else:
            array = numbers(x)
            found = self._ask(header, array if str(array.dtype) in DTYPES else array.astype(np.float32))
        return found, self._take_snapshot() if wants_snapshot else None

    def forget(self) -> None:
        """See :class:`~edgemem.client.link.Link`."""
        self._ask({"op": "close"})

    def close(self) -> None:
        """See :class:`~edgemem.client.link.Link`."""
        self._socket = None
        self._open.close()

    def _connect(self) -> dict[str, Any]:
        """Connect; what the server says of the stream."""
        self.close()
        try:
            opened = connect(self._url, additional_headers=self._headers, max_size=None, compression=None, proxy=None)
            self._socket = self._open.enter_context(opened)
            return self._heard()[0]
        except InvalidStatus as error:
            if error.response.status_code < 500:
                raise EdgememError(f"{self._url}: the server answers {error.response.status_code}.") from error
            raise LinkLostError(str(error)) from error
        except (OSError, InvalidHandshake) as error:
            raise LinkLostError(f"{self._url}: {error}") from error

    def _take_snapshot(self) -> bytes:
        found = self._ask({"op": "snapshot"}, b"")
        assert isinstance(found, bytes)
        return found

    def _ask(self, message: dict[str, Any], body: Any = None) -> Any:
        """What the server answers, if it does what it is asked for."""
        if self._socket is None:
            raise LinkLostError("not connected")
        try:
            self._socket.send(json.dumps(message) if body is None else pack(message, body))
            return self._heard()[1]
        except (ConnectionClosed, OSError) as error:
            raise LinkLostError(str(error)) from error

    def _heard(self) -> tuple[dict[str, Any], Any]:
        """The next message: its header, and its outputs or its bytes.

        Raises:
            EdgememError: It is an error.
        """
        assert self._socket is not None
        try:
            data = self._socket.recv(timeout=_FOR_AGES_S)
        except (ConnectionClosed, OSError) as error:  # a timeout is an OSError
            raise LinkLostError(str(error)) from error
        header, body = (json.loads(data), None) if isinstance(data, str) else unpack(data)
        if (refused := header.get("error")) is not None:
            raise EdgememError(refused["message"], hint=refused.get("hint"))
        outputs = header.get("outputs", body)
        if isinstance(outputs, dict):
            return header, {name: np.asarray(value) for name, value in outputs.items()}
        return header, np.asarray(outputs) if isinstance(outputs, list) else outputs
