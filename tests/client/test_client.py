"""A remote stream gives every output once, whatever happens to the connection and to the server."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets")
pytest.importorskip("starlette")

from edgemem.client import connect
from edgemem.errors import EdgememError, InputError
from tests.handmade import write_reciter, write_summer
from tests.loopback import free_port
from tests.serve.conftest import Running, running

ROWS = np.random.default_rng(0).integers(-9, 9, (120, 2)).astype(np.float32)
SUMS = np.cumsum(ROWS, 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("client")
    return [write_summer(folder / "summer"), write_reciter(folder / "reciter")]


@pytest.fixture(scope="module")
def server(folders: list[Path]) -> Iterator[Running]:
    with running(folders, slots=8) as server:
        yield server


def url(server: Running) -> str:
    return f"http://127.0.0.1:{server.port}"


class Cutter:
    """Forwards to a server, and breaks each connection after some pieces in either direction."""

    def __init__(self, port: int, most: int = 60) -> None:
        self._port, self._random, self._most = port, random.Random(1), most
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(("127.0.0.1", self._port))
                left = [self._random.randint(3, self._most)]
                for a, b in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._forward, args=(a, b, left), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                left[0] -= 1
                if left[0] <= 0:
                    break
                target.sendall(piece)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("x", [["a", "b"], [[1], [1, 2]], {"x": "text"}])
def test_what_is_no_array_of_numbers_is_refused_before_it_is_sent(server: Running, x: object) -> None:
    with connect(url(server), "numbers") as stream:
        with pytest.raises(InputError, match=r"numbers|one array"):
            stream.step(x)
        np.testing.assert_array_equal(stream.step(ROWS[0]), SUMS[0])


def test_steps_and_feeds_give_what_the_stream_gives(server: Running) -> None:
    with connect(url(server), "plain") as stream:
        np.testing.assert_array_equal(stream.step(ROWS[0]), SUMS[0])
        np.testing.assert_array_equal(stream.feed(ROWS[1:9]), SUMS[1:9])
        np.testing.assert_array_equal(stream.feed(ROWS[9:12], "last"), SUMS[11])
        np.testing.assert_array_equal(stream.step(ROWS[12].tolist()), SUMS[12])
        assert stream.calls == 4


def test_tokens_go_to_the_model_that_is_named(server: Running) -> None:
    with connect(url(server), "words", model="reciter") as stream:
        assert stream.step(65).shape == (256,)


@pytest.mark.parametrize(("every", "most"), [(1, 60), (7, 60), (1000, 400)])
def test_connections_break_at_any_moment_and_no_output_is_lost_or_doubled(
    server: Running, every: int, most: int
) -> None:
    cutter = Cutter(server.port, most)
    with connect(cutter.url, f"cut-{every}", snapshot_every=every, give_up_s=20) as stream:
        found = [stream.step(row) for row in ROWS]
        assert stream.resumed >= (3 if most == 60 else 1)
    np.testing.assert_array_equal(found, SUMS)
    cutter.close()


def test_another_server_takes_over_when_one_is_gone(server: Running, folders: list[Path]) -> None:
    with running(folders, slots=2) as first:
        stream = connect([url(first), url(server)], "moves", snapshot_every=8)
        found = [stream.step(row) for row in ROWS[:21]]
    found += [stream.step(row) for row in ROWS[21:40]]
    stream.close()
    np.testing.assert_array_equal(found, SUMS[:40])
    assert stream.resumed == 1


def test_a_client_that_comes_back_goes_on_with_its_stream(server: Running) -> None:
    first = connect(url(server), "comes-back")
    first.feed(ROWS[:30])
    first.disconnect()
    cutter = Cutter(server.port)
    with connect(cutter.url, "comes-back", snapshot_every=9) as again:
        np.testing.assert_array_equal([again.step(row) for row in ROWS[30:]], SUMS[30:])
    cutter.close()


def test_what_the_server_refuses_is_an_error_and_the_stream_is_as_it_was(server: Running) -> None:
    with connect(url(server), "refuses") as stream:
        stream.step(ROWS[0])
        with pytest.raises(EdgememError, match="2"):
            stream.step(np.zeros(3, np.float32))
        np.testing.assert_array_equal(stream.step(ROWS[1]), SUMS[1])
    with pytest.raises(EdgememError, match="is closed"):
        stream.step(ROWS[2])
    with pytest.raises(EdgememError, match="nothing"):
        connect(url(server), "other", model="nothing")


def test_where_no_server_answers_the_error_says_so() -> None:
    with pytest.raises(EdgememError, match="no server answers"):
        connect(f"http://127.0.0.1:{free_port()}", "s", give_up_s=0.2)


@pytest.mark.parametrize("server", ["ftp://x", "grpc://127.0.0.1:1"])
def test_an_address_of_another_kind_is_refused(server: str) -> None:
    with pytest.raises(InputError, match="is no address of a server"):
        connect(server, "s")


def test_a_bad_number_is_refused(server: Running) -> None:
    with pytest.raises(InputError, match="snapshot_every must be 1 or more"):
        connect(url(server), "s", snapshot_every=0)
