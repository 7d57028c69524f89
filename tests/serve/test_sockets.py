"""Streams over a WebSocket: what goes in comes out as from a stream alone, and the position is in every reply."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection

from tests.serve.conftest import Running, ask, running


@contextlib.contextmanager
def opened(server: Running, name: str) -> Iterator[tuple[ClientConnection, Any]]:
    """A connection, and what the server says first."""
    with server.connect(f"/{name}") as socket:
        yield socket, json.loads(socket.recv(10))


def test_rows_in_sums_out(server: Running) -> None:
    with opened(server, "rows") as (socket, hello):
        assert hello == {"op": "open", "stream": "rows", "position": 0}
        assert ask(socket, x=[1, 2], seq=7) == {
            "op": "step", "seq": 7, "stream": "rows", "position": 1, "outputs": [1.0, 2.0],
        }  # fmt: skip
        reply = ask(socket, op="feed", x=[[1, 2], [3, 4]], outputs="all")
        assert reply["outputs"] == [[2, 4], [5, 8]]
        assert reply["position"] == 3
        assert ask(socket, op="reset")["position"] == 0
        assert ask(socket, op="close")["closed"]


def test_a_client_that_was_cut_off_goes_on_where_it_was(server: Running) -> None:
    with contextlib.ExitStack() as stack:
        first, _ = stack.enter_context(opened(server, "cut"))
        ask(first, x=[1, 2])
        second, hello = stack.enter_context(opened(server, "cut"))  # the first is still there: it loses the stream
        assert hello["position"] == 1
        assert ask(second, x=[1, 2])["outputs"] == [2, 4]
        with pytest.raises(ConnectionClosed, match="4001"):
            first.recv(10)
        ask(second, op="close")


def test_one_message_has_rows_of_several_streams(server: Running) -> None:
    with server.connect("") as socket:
        names = ["a", "b", "c"]
        assert ask(socket, op="open", streams=names)["positions"] == [0, 0, 0]
        reply = ask(socket, streams=names, x=[[1, 0], [2, 0], [3, 0]])
        assert reply["outputs"] == [[1, 0], [2, 0], [3, 0]]
        assert reply["positions"] == [1, 1, 1]
        reply = ask(socket, streams=["c", "a"], x=[[1, 0], [1, 1]])
        assert reply["outputs"] == [[4, 0], [2, 1]]
        for name in names:
            ask(socket, op="close", stream=name)


def test_streams_that_come_back_together_lie_side_by_side(summer: Path) -> None:
    groups = [[f"{letter}{number}" for number in range(4)] for letter in "ab"]
    with running([summer], slots=8, idle_s=0.05) as server:
        hub = server.host.model().hub
        with server.connect("") as socket:
            for names in zip(*groups, strict=True):  # a0, b0, a1, …
                ask(socket, op="open", streams=list(names))
        while hub.figures()["streams"]:
            time.sleep(0.02)
        with server.connect("") as first, server.connect("") as second:
            for socket, names in zip((first, second), groups, strict=True):
                socket.send(json.dumps({"op": "open", "streams": names}))
            for socket in (first, second):
                assert json.loads(socket.recv(10))["positions"] == [0] * 4
            rows = [[hub.entries[name].stream.row for name in names] for names in groups]  # type: ignore[union-attr]
            assert sorted(rows) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_binary_messages(server: Running) -> None:
    with opened(server, "binary") as (socket, _):
        header = json.dumps({"op": "step", "dtype": "float32", "shape": [2], "seq": 1}).encode()
        socket.send(len(header).to_bytes(4, "little") + header + np.float32([3, 4]).tobytes())
        reply = socket.recv(10)
        assert isinstance(reply, bytes)
        end = 4 + int.from_bytes(reply[:4], "little")
        facts = json.loads(reply[4:end])
        assert facts == {
            "op": "step", "seq": 1, "stream": "binary", "position": 1, "dtype": "float32", "shape": [2],
        }  # fmt: skip
        np.testing.assert_array_equal(np.frombuffer(reply[end:], np.float32), [3, 4])
        ask(socket, op="close")


def test_forks_and_snapshots(server: Running) -> None:
    with opened(server, "parent") as (socket, _):
        ask(socket, x=[1, 1])
        assert ask(socket, op="fork", to="child") == {"op": "fork", "stream": "child", "position": 1}
        taken = ask(socket, op="snapshot")["outputs"]
        assert ask(socket, x=[1, 1])["outputs"] == [2, 2]
        assert ask(socket, stream="child", x=[5, 5])["outputs"] == [6, 6]
        assert ask(socket, op="restore", data=taken)["position"] == 1
        assert ask(socket, x=[2, 2])["outputs"] == [3, 3]
        assert ask(socket, op="fork", to="child")["error"]["code"] == "stream_exists"
        for name in ("parent", "child"):
            ask(socket, op="close", stream=name)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "malformed_message"),
        ("[1]", "malformed_message"),
        (b"\xff\xff\xff\xffx", "malformed_message"),
        (json.dumps({"op": "explode"}), "unknown_op"),
        (json.dumps({"op": "step"}), "no_data"),
        (json.dumps({"x": [1]}), "input_error"),
        (json.dumps({"x": ["a", "b"]}), "input_error"),
        (json.dumps({"x": [[1, 2], [3, 4]]}), "input_error"),
        ('{"x": [1e39, 1]}', "non_finite_error"),
        (json.dumps({"op": "feed", "x": [[1, 2]], "outputs": "some"}), "input_error"),
        (json.dumps({"op": "restore", "data": "00"}), "snapshot_error"),
        (json.dumps({"op": "restore", "data": "zz"}), "bad_snapshot"),
        (json.dumps({"stream": "../../etc/passwd", "x": [1, 2]}), "bad_stream_name"),
        (json.dumps({"streams": "ab", "x": [1, 2]}), "bad_streams"),
        (json.dumps({"streams": ["ok", "ok"], "x": [[1, 2], [1, 2]]}), "input_error"),
    ],
)
def test_a_bad_message_is_an_error_by_name_and_changes_nothing(
    server: Running, message: str | bytes, code: str
) -> None:
    with opened(server, "steady") as (socket, _):
        ask(socket, op="reset")
        ask(socket, x=[1, 1])
        socket.send(message)
        reply = socket.recv(10)
        error = json.loads(reply)["error"]
        assert error["code"] == code
        assert error["message"]
        assert ask(socket, x=[1, 1])["outputs"] == [2, 2]
        for name in ("ok", "steady"):
            ask(socket, op="close", stream=name)


def test_too_many_streams_and_no_slot(server: Running) -> None:
    with server.connect("") as socket:
        for name in "abcd":
            assert "error" not in ask(socket, op="open", stream=name)
        assert ask(socket, op="open", stream="e")["error"]["code"] == "pool_full_error"
        assert ask(socket, op="open", streams=list("abcdefgh"))["error"]["code"] == "bad_streams"
        assert ask(socket, stream="a", x=[1, 1])["outputs"] == [1, 1]
        for name in "abcd":
            ask(socket, op="close", stream=name)


def test_idle_streams_make_room_and_come_back(server: Running) -> None:
    with server.connect("") as socket:
        for name in "abcd":
            ask(socket, stream=name, x=[1, 2])
    with server.connect("") as socket:  # nobody uses the four now
        while "error" in (reply := ask(socket, stream="e", x=[1, 1])):
            assert reply["error"]["code"] == "pool_full_error"  # the server has not seen the end yet
        assert ask(socket, stream="e", x=[1, 1])["position"] == 2
        assert ask(socket, stream="a", x=[1, 2])["outputs"] == [2, 4]
        for name in "abe":
            ask(socket, op="close", stream=name)
        for name in "cd":
            ask(socket, op="close", stream=name)


def test_a_message_that_is_too_long_ends_the_connection_alone(server: Running) -> None:
    with opened(server, "victim") as (victim, _), server.connect("/flood") as socket:
        socket.recv(10)
        socket.send("x" * 30_000)
        with pytest.raises(ConnectionClosed, match="1009"):
            socket.recv(10)
        assert ask(victim, x=[1, 1])["outputs"] == [1, 1]
        ask(victim, op="close")


def test_pages_of_other_origins_are_refused(server: Running) -> None:
    with pytest.raises(InvalidStatus, match="403"):
        server.connect("/page", origin="http://evil.example")
    with server.connect("/page", origin=f"http://127.0.0.1:{server.port}") as socket:
        assert json.loads(socket.recv(10))["position"] == 0
        ask(socket, op="close")


def test_the_token_is_asked_for(summer: Path) -> None:
    with running([summer], token="secret", origins=("http://board.example",)) as server:
        with pytest.raises(InvalidStatus, match="403"):
            server.connect("/x")
        with pytest.raises(InvalidStatus, match="403"):
            server.connect("/x?token=wrong")
        for options in ({"additional_headers": {"Authorization": "Bearer secret"}}, {"origin": "http://board.example"}):
            path = "/x" if "additional_headers" in options else "/x?token=secret"
            with server.connect(path, **options) as socket:
                assert json.loads(socket.recv(10))["stream"] == "x"
        assert server.request("GET", "/v1/models")[0] == 401
        assert server.request("GET", "/v1/models", Authorization="Bearer secret")[0] == 200
        assert server.request("GET", "/healthz")[0] == 200


def test_a_flood_is_limited_and_the_stream_stays(summer: Path) -> None:
    with running([summer], messages_per_s=5) as server, opened(server, "fast") as (socket, _):
        codes = [ask(socket, x=[1, 0]).get("error", {}).get("code") for _ in range(12)]
        assert codes[:5] == [None] * 5
        assert "rate_limited" in codes
        assert set(codes) <= {None, "rate_limited"}


def test_an_unknown_model_is_named(server: Running) -> None:
    with server.connect("/x?model=nothing") as socket:
        assert json.loads(socket.recv(10))["error"]["code"] == "model_not_found"


def test_tokens_of_the_second_bundle(server: Running) -> None:
    with server.connect("/text?model=reciter") as socket:
        socket.recv(10)
        logits = ask(socket, x=104)["outputs"]
        assert chr(int(np.argmax(logits))) == "h"
        ask(socket, op="close")
