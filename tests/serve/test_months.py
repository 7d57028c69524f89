"""Streams survive restarts: what was saved goes on, what is damaged is one stream, other weights are named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import connect

from edgemem.errors import EdgememError
from edgemem.serve import Host, ServeOptions
from tests.handmade import write_looker
from tests.serve.conftest import Running, ask, running
from tests.service import under_systemd


def step(server: Running, name: str, x: list[float]) -> Any:
    with server.connect(f"/{name}") as connection:
        hello = json.loads(connection.recv(10))
        if "error" in hello:
            return hello
        return ask(connection, x=x)


def state_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.state"))


def test_a_restart_goes_on_where_the_streams_were(summer: Path, tmp_path: Path) -> None:
    with running([summer], state_dir=tmp_path) as server:
        step(server, "one", [1, 2])
        step(server, "two", [3, 4])
    assert [path.name for path in state_files(tmp_path)] == ["one.state", "two.state"]
    with running([summer], state_dir=tmp_path) as server:
        assert step(server, "one", [1, 2])["outputs"] == [2, 4]
        assert step(server, "two", [1, 1])["position"] == 2
        with server.connect("/two") as connection:
            connection.recv(10)
            ask(connection, op="close")
    assert [path.name for path in state_files(tmp_path)] == ["one.state"]


def test_streams_are_saved_and_parked_in_the_background(summer: Path, tmp_path: Path) -> None:
    with running([summer], state_dir=tmp_path, save_every_s=0.05, idle_s=0.05) as server:
        step(server, "one", [1, 2])
        deadline = time.monotonic() + 10
        while server.host.models["summer"].hub.pool.stats.streams or not state_files(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert step(server, "one", [1, 2])["outputs"] == [2, 4]


def test_a_damaged_file_loses_one_stream_with_a_line_in_the_log(
    summer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running([summer], state_dir=tmp_path) as server:
        step(server, "one", [1, 2])
        step(server, "two", [3, 4])
    broken = state_files(tmp_path)[0]
    broken.write_bytes(broken.read_bytes()[:-3])
    with running([summer], state_dir=tmp_path) as server:
        assert step(server, "one", [1, 2])["error"]["code"] == "snapshot_error"
        assert step(server, "two", [1, 1])["outputs"] == [4, 5]
        assert step(server, "one", [1, 2])["outputs"] == [1, 2]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    (lost,) = [line for line in lines if line["event"] == "state_lost"]
    assert lost["stream"] == "one"
    assert broken.with_suffix(".damaged").exists()


def test_other_weights_are_named_and_nothing_is_lost_in_silence(tmp_path: Path) -> None:
    states, folders = (
        tmp_path / "states",
        [write_looker(tmp_path / name, scale) for name, scale in (("a", 1), ("b", 2))],
    )
    with running([folders[0]], state_dir=states) as server, server.connect("/x") as connection:
        connection.recv(10)
        ask(connection, x=3)
    with pytest.raises(EdgememError, match="states of 1 stream of other weights"):
        Host([folders[1]], ServeOptions(state_dir=states))
    with running([folders[1]], state_dir=states, other_states="keep"):
        assert len(state_files(states)) == 1
    with running([folders[1]], state_dir=states, other_states="discard"):
        assert state_files(states) == []


def test_a_thousand_parked_streams_are_ready_at_once(summer: Path, tmp_path: Path) -> None:
    with running([summer], state_dir=tmp_path) as server:
        step(server, "s0", [1, 2])
    (first,) = state_files(tmp_path)
    for number in range(1, 1000):
        (first.parent / f"s{number}.state").write_bytes(first.read_bytes())
    started = time.monotonic()
    with running([summer], state_dir=tmp_path) as server:
        assert time.monotonic() - started < 2
        assert step(server, "s617", [1, 2])["outputs"] == [2, 4]


def test_the_watchdog_is_told_while_the_pools_work_and_not_when_one_hangs(
    summer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = under_systemd(monkeypatch, tmp_path, watchdog_s=0.2)
    hang = threading.Event()
    with running([summer]) as server:
        assert messages.get(10) == "READY=1"
        for _ in range(3):
            assert messages.get(10) == "WATCHDOG=1"
        server.host.models["summer"].hub.pool.call(hang.wait)  # the thread that steps, and not the event loop
        while messages.get(0.5):
            pass
        assert server.request("GET", "/healthz")[0] == 200
        hang.set()
        assert messages.get(10) == "WATCHDOG=1"
    while (message := messages.get(10)) == "WATCHDOG=1":
        pass
    assert message == "STOPPING=1"


def test_two_servers_do_not_share_a_folder(summer: Path, tmp_path: Path) -> None:
    with running([summer], state_dir=tmp_path), pytest.raises(EdgememError, match="another server"):
        Host([summer], ServeOptions(state_dir=tmp_path))


def test_a_stream_that_cannot_be_saved_is_one_stream(
    summer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with running([summer], state_dir=tmp_path) as server:
        for name in ("one", "two"):
            step(server, name, [1, 2])
        folder = server.host.models["summer"].hub.store.folder  # type: ignore[union-attr]
        (folder / "one.state").mkdir()
    assert [path.name for path in folder.glob("*.state") if path.is_file()] == ["two.state"]
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["stream"] for line in lines if line["event"] == "save_failed"] == ["one"]


def test_saving_many_streams_is_asked_of_the_disk_once(
    summer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("edgemem.serve.store.sync_files", lambda paths: asked.append(len(paths)))
    names = [f"s{number}" for number in range(50)]
    with running([summer], state_dir=tmp_path) as server, server.connect("") as connection:
        ask(connection, streams=names, x=[[1, 2]] * 50)
    assert asked == [50]


def test_what_a_killed_server_had_written_is_taken_if_it_is_whole(summer: Path, tmp_path: Path) -> None:
    with running([summer], state_dir=tmp_path) as server:
        for name, x in (("one", [1, 2]), ("two", [3, 4])):
            step(server, name, x)
    one, two = state_files(tmp_path)
    for name, data in (("one", two.read_bytes()), ("two", one.read_bytes()[:-1])):  # before they took their places
        (one.parent / "new" / f"{name}.state").write_bytes(data)
    with running([summer], state_dir=tmp_path) as server:
        assert step(server, "one", [0, 0])["outputs"] == [3, 4]
        assert step(server, "two", [0, 0])["outputs"] == [3, 4]


class Process:
    """``edgemem serve`` as a process of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "edgemem", "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.log: list[Any] = []
        while not self.log or self.log[-1]["event"] != "ready":
            assert self.process.stderr is not None
            line = self.process.stderr.readline()
            assert line, self.process.wait()
            self.log.append(json.loads(line))
        self.port = next(line["port"] for line in self.log if line["event"] == "listening")

    def end(self, number: int) -> str:
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=30)
        return rest


@pytest.mark.long
def test_sigterm_drains_and_saves(summer: Path, tmp_path: Path) -> None:
    server = Process(summer, "--state-dir", tmp_path)
    with connect(f"ws://127.0.0.1:{server.port}/v1/streams/x") as connection:
        connection.recv(10)
        ask(connection, x=[1, 2])
        rest = server.end(signal.SIGTERM)
    assert json.loads(rest.splitlines()[-1])["event"] == "stopped"
    assert len(state_files(tmp_path)) == 1


@pytest.mark.long
def test_kill_9_loses_no_stream_and_no_more_than_the_interval(summer: Path, tmp_path: Path) -> None:
    rng, kills = np.random.default_rng(0), int(os.environ.get("KILLS", "100"))
    names, known = [f"s{n}" for n in range(5)], dict.fromkeys([f"s{n}" for n in range(5)], 0)
    every_s = 2.0
    for _ in range(kills):
        server = Process(summer, "--state-dir", tmp_path, "--save-every", f"{every_s}s")
        acknowledged: list[tuple[float, dict[str, int]]] = []
        with connect(f"ws://127.0.0.1:{server.port}/v1/streams") as connection:
            found = ask(connection, op="open", streams=names)["positions"]
            for name, position in zip(names, found, strict=True):
                assert position >= known[name]
            until = time.monotonic() + rng.uniform(0.2, 4.0)
            while time.monotonic() < until:
                reply = ask(connection, streams=names, x=[[1, 1]] * 5)
                assert [row[0] for row in reply["outputs"]] == reply["positions"]  # the sum of ones
                acknowledged.append((time.monotonic(), dict(zip(names, reply["positions"], strict=True))))
            killed_s = time.monotonic()
            server.end(signal.SIGKILL)
        # What was acknowledged an interval before the kill must be there.
        known = next((told for at_s, told in reversed(acknowledged) if at_s < killed_s - every_s), known)
