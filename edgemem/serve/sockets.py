"""``WebSocket /v1/streams/{name}``: rows, samples or tokens in, outputs out, with the position in every reply."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from edgemem.errors import EdgememError
from edgemem.serve.errors import RequestError, error_code, error_json
from edgemem.serve.host import Host, Model
from edgemem.serve.hub import Entry
from edgemem.serve.log import log
from edgemem.serve.messages import parse_message, write_message
from edgemem.serve.metrics import OPS
from edgemem.wording import counted

_TAKEN_OVER, _STOPPING = 4001, 1012


class Connection:
    """One WebSocket and the streams that it has open.

    Args:
        host: What is served.
        model: The model of all its streams.
        socket: The WebSocket.
        name: The stream of messages that name none.
    """

    def __init__(self, host: Host, model: Model, socket: WebSocket, name: str | None) -> None:
        self._host, self._hub, self._socket, self._name = host, model.hub, socket, name
        self._contract = model.hub.pool.contract
        self._entries: dict[str, Entry] = {}
        self._allowed, self._refilled_s = host.options.messages_per_s, time.monotonic()

    async def run(self) -> None:
        """Answer messages until the client or the server ends it."""
        await self._socket.accept()
        self._host.metrics.connections.inc()
        self._hub.connections += 1
        try:
            if self._name is not None:
                await self._greet()
            while True:
                event = await self._socket.receive()
                if event["type"] == "websocket.disconnect":
                    return
                started_s = time.perf_counter()
                op, written = await self._answer(event.get("text"), event.get("bytes"))
                took_s = time.perf_counter() - started_s
                kind = "bytes" if isinstance(written, bytes) else "text"
                await self._socket.send({"type": "websocket.send", kind: written})
                self._count(op, took_s)  # which the client need not wait for
        except (WebSocketDisconnect, RuntimeError):
            return  # the client went, or another connection took its stream over
        finally:
            self._host.metrics.connections.dec()
            self._hub.connections -= 1
            now_s = time.monotonic()
            for entry in self._entries.values():
                if entry.owner is self:
                    entry.owner, entry.used_s = None, now_s

    async def drop(self, code: int, reason: str) -> None:
        """End the connection from this side."""
        try:
            await asyncio.wait_for(self._socket.close(code, reason), 1)
        except (RuntimeError, TimeoutError, asyncio.TimeoutError):
            return

    async def _greet(self) -> None:
        """Open the stream of the address, and say where it stands."""
        try:
            entry = await self._attach(self._name)
            await self._socket.send_text(write_message({"op": "open", **self._where(entry)}))  # type: ignore[arg-type]
        except EdgememError as error:
            self._host.metrics.errors.labels(error_code(error)).inc()
            await self._socket.send_text(write_message({"op": "open", "error": error_json(error)}))  # type: ignore[arg-type]

    def _where(self, entry: Entry) -> dict[str, Any]:
        assert entry.stream is not None
        return {"stream": entry.name, "position": entry.stream.position}

    async def _attach(self, name: object) -> Entry:
        if len(self._entries) >= self._host.options.client_streams and name not in self._entries:
            raise RequestError(
                "too_many_streams",
                f"this connection has {counted(len(self._entries), 'stream')} open, as many as it may.",
                hint="Close some, or use another connection.",
            )
        known = self._hub.entries.get(name) if isinstance(name, str) else None
        before = known.owner if known is not None else None
        entry = await self._hub.attach(name, self)
        if isinstance(before, Connection) and before is not self:
            before._entries.pop(entry.name, None)
            if before._name == entry.name:
                await before.drop(_TAKEN_OVER, "another connection took the stream over")
        self._entries[entry.name] = entry
        return entry

    def _known(self, name: object) -> Entry | None:
        """A stream that this connection has, in the pool."""
        entry = self._entries.get(name) if isinstance(name, str) else None
        if entry is None or entry.owner is not self or entry.stream is None or entry.stream.closed:
            return None
        return entry

    async def _entry(self, name: object) -> Entry:
        """A stream of this connection; one that it does not have yet is opened or resumed."""
        if name is None:
            raise RequestError("no_stream", "the message names no stream.", hint='Add "stream": a name.')
        return self._known(name) or await self._attach(name)

    def _admit(self) -> None:
        """Count a message against the rate."""
        rate, now_s = self._host.options.messages_per_s, time.monotonic()
        self._allowed = min(rate, self._allowed + (now_s - self._refilled_s) * rate)
        self._refilled_s = now_s
        if self._allowed < 1:
            raise RequestError(
                "rate_limited", f"more than {rate:g} messages a second.", status=429,
                hint="Wait, and send rows of several streams in one message.",
            )  # fmt: skip
        self._allowed -= 1

    def _count(self, op: object, took_s: float) -> None:
        self._host.metrics.latency[str(op) if op in OPS else "unknown"].observe(took_s)
        if op == "step" and took_s > self._host.options.deadline_ms / 1e3:
            self._host.metrics.late.inc()

    async def _answer(self, text: str | None, data: bytes | None) -> tuple[object, str | bytes]:
        """What a message asked for, and the reply, an error included."""
        message, op = dict[str, Any](), "step"
        try:
            self._admit()
            message = parse_message(text, data)
            op = message.get("op", "step")
            if op not in OPS:
                raise RequestError("unknown_op", f"there is no op {str(op)[:40]!r}.", hint=f"Ops: {', '.join(OPS)}.")
            reply, outputs = await getattr(self, f"_{op}")(message)
        except Exception as error:
            self._host.metrics.errors.labels(error_code(error)).inc()
            if not isinstance(error, EdgememError):
                log("internal_error", op=str(op), error=f"{type(error).__name__}: {error}")
            reply, outputs = {"error": error_json(error), **self._position_of(message)}, None
        reply = {"op": op, **({"seq": message["seq"]} if "seq" in message else {}), **reply}
        return op, write_message(reply, outputs, binary=message.get("binary", data is not None))

    def _position_of(self, message: dict[str, Any]) -> dict[str, Any]:
        """Where the stream of a message that failed stands."""
        name = message.get("stream", self._name)
        entry = self._entries.get(name) if isinstance(name, str) else None
        return self._where(entry) if entry is not None and entry.stream is not None else {}

    # Ops: each gives the reply and what goes beside it.

    async def _one(self, message: dict[str, Any]) -> Entry:
        name = message.get("stream", self._name)
        return self._known(name) or await self._entry(name)

    async def _several(self, message: dict[str, Any]) -> list[Entry]:
        names = message["streams"]
        if not isinstance(names, list) or not names or len(names) > self._host.options.client_streams:
            raise RequestError("bad_streams", "streams is a list of names, 1 or more.")
        known = [entry for name in names if (entry := self._known(name)) is not None]
        if len(known) == len(names):
            return known
        async with self._hub.opening:
            return [await self._entry(name) for name in names]

    async def _open(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if "streams" not in message:
            return self._where(await self._one(message)), None
        entries = await self._several(message)
        streams = [entry.stream for entry in entries if entry.stream is not None]
        return {"streams": message["streams"], "positions": self._hub.pool.positions(streams)}, None

    async def _step(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        several = "streams" in message
        entries = await self._several(message) if several else [await self._one(message)]
        streams = [entry.stream for entry in entries if entry.stream is not None]
        data = _data(message)
        outcome = self._hub.try_step(streams, data) or await self._hub.step(streams, data)
        if several:
            errors = {entries[place].name: error_json(error) for place, error in outcome.errors.items()}
            reply = {"streams": message["streams"], "positions": self._hub.pool.positions(streams)}
            return {**reply, **({"errors": errors} if errors else {})}, outcome.outputs
        for error in outcome.errors.values():
            raise error
        return self._where(entries[0]), _first_row(outcome.outputs)

    async def _feed(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        entry = await self._one(message)
        assert entry.stream is not None
        future = entry.stream.soon.feed(_data(message), message.get("outputs", "last"))
        made = await asyncio.wrap_future(future)
        return self._where(entry), _first_row(made)

    async def _finish(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        entry = await self._one(message)
        assert entry.stream is not None
        made = await asyncio.wrap_future(entry.stream.soon.finish())
        return self._where(entry), _first_row(made)

    async def _reset(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        entry = await self._one(message)
        assert entry.stream is not None
        await asyncio.wrap_future(entry.stream.soon.reset())
        return self._where(entry), None

    async def _fork(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        entry = await self._one(message)
        copy = await self._hub.fork(entry, message.get("to"), self)
        self._entries[copy.name] = copy
        return self._where(copy), None

    async def _snapshot(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        entry = await self._one(message)
        data, position = await self._hub.packed(entry)
        return {"stream": entry.name, "position": position}, data

    async def _restore(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        entry = await self._one(message)
        data = message.get("data")
        try:
            data = bytes.fromhex(data) if isinstance(data, str) else data
        except ValueError:
            data = None
        if not isinstance(data, bytes):
            raise RequestError("bad_snapshot", "data is a snapshot, in hexadecimal or behind a binary header.")
        assert entry.stream is not None
        parts = await asyncio.to_thread(self._hub.pool.read, data)
        await asyncio.wrap_future(entry.stream.soon.install(parts))
        return self._where(entry), None

    async def _close(self, message: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        entry = await self._one(message)
        self._entries.pop(entry.name, None)
        await self._hub.close(entry)
        return {"stream": entry.name, "closed": True}, None


def _data(message: dict[str, Any]) -> Any:
    if "x" not in message:
        raise RequestError("no_data", "the message has no data.", hint='Add "x": a row, an item or a token id.')
    x = message["x"]
    return {name: np.asarray(value) for name, value in x.items()} if isinstance(x, dict) else x


def _first_row(outputs: Any) -> Any:
    """The outputs of the only stream, without the batch axis."""
    if isinstance(outputs, dict):
        return {name: value[0] for name, value in outputs.items()}
    return None if outputs is None else outputs[0]
