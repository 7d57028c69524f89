"""A stream on a server, which survives lost connections and restarts of the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from edgemem.client.link import Link, LinkLostError, Op
from edgemem.errors import EdgememError, InputError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


class RemoteStream:
    """A stream on a server.

    The client keeps the last snapshot and what it has sent since. After a lost connection it gives the server that
    snapshot, sends the rest again, and goes on: outputs come once each, and none is left out.

    Args:
        links: Ways to servers; the first that answers is used, and after a loss the next.
        snapshot_every: Calls between two snapshots. What was sent since the last one is kept here.
        give_up_s: For how long to try to connect again.

    Attributes:
        calls: Calls since this client opened the stream.
        resumed: How often a connection was made again.
    """

    def __init__(self, links: Sequence[Link], *, snapshot_every: int = 256, give_up_s: float = 60.0) -> None:
        if snapshot_every < 1 or not links:
            raise InputError(f"snapshot_every must be 1 or more, got {snapshot_every!r}; servers must be 1 or more.")
        self._links, self._at = list(links), 0
        self._every, self._give_up_s = snapshot_every, give_up_s
        self._sent: list[tuple[Op, Any]] = []
        self._closed = False
        self.calls = self.resumed = 0
        self._snapshot: bytes | None = None
        self._snapshot = self._until_connected(lambda link: link.resume())

    def __repr__(self) -> str:
        return f"RemoteStream(calls={self.calls}, resumed={self.resumed}{', closed' if self._closed else ''})"

    def step(self, x: Any) -> Any:
        """Advance by one step.

        Args:
            x: A row, an item or a token id, as :meth:`edgemem.Stream.step` takes it for one stream.

        Returns:
            The outputs, without a batch axis; by name where there are several.

        Raises:
            EdgememError: The server refuses, and the stream is as it was; or no server answers.
        """
        return self._call("step", x, "all")

    def feed(self, x: Any, outputs: str = "all") -> Any:
        """Advance by any number of items; see :meth:`edgemem.Stream.feed`."""
        return self._call("feed", x, outputs)

    def close(self) -> None:
        """End the stream, on the server too. A second call does nothing."""
        if not self._closed:
            self._closed = True
            try:
                self._link.forget()
            except LinkLostError:
                pass  # the server drops it when it was idle for long enough
            finally:
                self._link.close()

    def disconnect(self) -> None:
        """End the connection. The stream stays on the server for as long as that keeps it."""
        self._closed = True
        self._link.close()

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _link(self) -> Link:
        return self._links[self._at]

    def _call(self, op: Op, x: Any, outputs: str) -> Any:
        if self._closed:
            raise EdgememError("the stream is closed.", hint="Open another one: edgemem.client.connect(…).")
        wants = len(self._sent) + 1 >= self._every
        try:
            found, snapshot = self._link.send(op, x, outputs, wants)
        except LinkLostError:
            found, snapshot = self._until_connected(lambda link: self._again(link, op, x, outputs, wants))
            self.resumed += 1
        if snapshot is None:
            self._sent.append((op, x))
        else:
            self._snapshot, self._sent = snapshot, []
        self.calls += 1
        return found

    def _again(self, link: Link, op: Op, x: Any, outputs: str, wants: bool) -> tuple[Any, bytes | None]:
        """Bring a server to where the stream stands, and make the call that was lost."""
        link.open(self._snapshot)
        for sent in self._sent:
            link.send(*sent, "last", False)
        return link.send(op, x, outputs, wants)

    def _until_connected(self, attempt: Callable[[Link], Any]) -> Any:
        """What an attempt gives, by the first server that answers.

        Raises:
            EdgememError: None did for too long.
        """
        until, pause_s = time.monotonic() + self._give_up_s, _FIRST_PAUSE_S
        while True:
            try:
                return attempt(self._link)
            except LinkLostError as error:
                self._link.close()
                self._at = (self._at + 1) % len(self._links)
                if time.monotonic() + pause_s > until:
                    raise EdgememError(
                        f"no server answers: {error}.", hint="Look at its log. A new stream can take over a snapshot."
                    ) from error
            if self._at == 0:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def connect(
    servers: str | Sequence[str],
    stream: str,
    *,
    model: str | None = None,
    token: str | None = None,
    snapshot_every: int = 256,
    give_up_s: float = 60.0,
) -> RemoteStream:
    """A stream on a server; one that has this name there already goes on.

    Args:
        servers: ``"http://HOST:PORT"`` of `edgemem serve`, or ``"grpc://HOST:PORT"`` of a Triton server. Several are
            tried in turn.
        stream: Its name, which no other client uses at the same time.
        model: Which model; `edgemem serve` has a default, Triton has none.
        token: What `edgemem serve --token-file` asks for.
        snapshot_every: See :class:`RemoteStream`.
        give_up_s: See :class:`RemoteStream`.

    Raises:
        InputError: An address is of another kind.
        MissingDependencyError: The package that speaks to such a server is not installed.
        EdgememError: No server answers, or it refuses.
    """
    links: list[Link] = []
    for server in [servers] if isinstance(servers, str) else servers:
        kind, _, host = server.partition("://")
        if kind in ("http", "https"):
            from edgemem.client.serve_link import ServeLink

            links.append(ServeLink(server.rstrip("/"), stream, model, token))
        elif kind == "grpc" and model is not None:
            from edgemem.client.triton_link import TritonLink

            links.append(TritonLink(host.rstrip("/"), stream, model))
        else:
            raise InputError(
                f"{server!r} is no address of a server.",
                hint='Give "http://HOST:PORT" of edgemem serve, or "grpc://HOST:PORT" of Triton with model="NAME".',
            )
    return RemoteStream(links, snapshot_every=snapshot_every, give_up_s=give_up_s)
