"""``--snapshot``, ``--resume``, ``--state`` and ``--save-every``: what a run saves, whatever ends it."""

from __future__ import annotations

import functools
import math
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import edgemem
from edgemem.cli.interrupt import Interrupt
from edgemem.cli.note import Note
from edgemem.cli.snapshots import Saver, SnapshotOptions, duration_s
from edgemem.errors import EdgememError
from tests.handmade import RECITED, write_reciter
from tests.service import under_systemd

from .conftest import end_by_signal


@pytest.fixture
def many_rows(tmp_path: Path) -> Path:
    """A file of 2,000,000 rows of ones: more than a run gets through."""
    np.save(tmp_path / "rows", np.ones((2_000_000, 2), dtype=np.float32))
    return tmp_path / "rows.npy"


def position(invoke: Any, bundle: Path, state: Path) -> int:
    """How many rows of ones a saved state has seen."""
    return round(float(invoke("run", bundle, "--resume", state, input="0,0\n").stdout.split(",")[0]))


def test_a_full_disk_behind_stdout_keeps_the_snapshot(summer: Path, invoke: Any, start: Any, many_rows: Path) -> None:
    state = many_rows.parent / "state"
    with Path("/dev/full").open("wb") as full:
        process = start("run", summer, many_rows, "--snapshot", state, stdout=full)
        assert process.wait(timeout=30) == 1
    assert process.stderr.read() == b"Error: the output: No space left on device.\n"
    assert position(invoke, summer, state) == 16  # one chunk


def test_a_hangup_keeps_every_row_that_was_printed(summer: Path, invoke: Any, start: Any, tmp_path: Path) -> None:
    # Tests that were started with nohup hand down that a hangup is to be ignored.
    hears = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
    process = start("run", summer, "--snapshot", tmp_path / "state", preexec_fn=hears)
    process.stdin.write(b"1,1\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"1.0,1.0\n"
    process.stderr.close()  # as a terminal that is gone
    assert end_by_signal(process, signal.SIGHUP) == 129
    assert position(invoke, summer, tmp_path / "state") == 1


def test_a_state_starts_fresh_and_then_goes_on(summer: Path, invoke: Any, tmp_path: Path) -> None:
    for wanted in ("1.0,2.0\n", "2.0,4.0\n", "3.0,6.0\n"):
        result = invoke("run", summer, "--state", tmp_path / "state", input="1,2\n")
        assert (result.exit_code, result.stdout) == (0, wanted)
    (tmp_path / "state").write_bytes(b"something else")
    result = invoke("run", summer, "--state", tmp_path / "state", input="1,2\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not an edgemem snapshot" in result.stderr
    assert (tmp_path / "state").read_bytes() == b"something else"


def test_a_text_goes_on_from_a_state(reciter: Path, invoke: Any, tmp_path: Path) -> None:
    options = ("--state", tmp_path / "state", "--max-tokens", "5", "--temperature", "0")
    first = invoke("run", reciter, "--prompt", "t", *options).stdout
    assert first[:-1] + invoke("run", reciter, *options).stdout[:-1] == RECITED[1:10]


def test_a_text_that_reaches_the_last_position_is_saved_and_half_a_prompt_is_not(tmp_path: Path, invoke: Any) -> None:
    bundle, state = write_reciter(tmp_path / "bundle", max_position=20), tmp_path / "state"
    result = invoke("run", bundle, "--prompt", "t", "--max-tokens", "50", "--temperature", "0", "--snapshot", state)
    assert (result.exit_code, result.stdout) == (1, RECITED.encode()[1:21].decode())
    assert "would pass the 20" in result.stderr
    with edgemem.open(bundle, threads=1) as session:
        stream = session.stream()
        stream.restore(state)
        assert stream.position == 20
    state.unlink()
    assert invoke("run", bundle, "--prompt", "t" * 21, "--snapshot", state).exit_code == 1
    assert not state.exists()


def test_kill_9_loses_no_more_than_the_interval(summer: Path, invoke: Any, start: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    process = start("run", summer, "--state", state, "--save-every", "0.2s")
    for row in range(1, 4):
        process.stdin.write(b"1,1\n")
        process.stdin.flush()
        assert process.stdout.readline() == f"{row}.0,{row}.0\n".encode()
    ended_s = time.monotonic() + 30  # nothing arrives any more: what was read is saved while the run waits
    while not (state.exists() and position(invoke, summer, state) == 3):
        assert time.monotonic() < ended_s
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert invoke("run", summer, "--state", state, input="1,1\n").stdout == "4.0,4.0\n"
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


class Clock:
    """A clock that the test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_saver_saves_what_is_new_when_it_is_time(
    summer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr("edgemem.cli.snapshots.time.monotonic", clock)
    with edgemem.open(summer, threads=1) as session:
        stream = session.stream()
        saver = Saver(stream, Note, tmp_path / "state", 60.0)
        saved = []
        monkeypatch.setattr(stream, "save", lambda path, note: saved.append(stream.position))
        for now_s, steps, wanted in (
            (1, 1, []),
            (59, 1, []),
            (60, 0, [2]),
            (119, 0, [2]),
            (121, 0, [2]),
            (200, 1, [2, 3]),
        ):
            clock.now_s = now_s
            for _ in range(steps):
                stream.step([1, 1])
            left_s = saver.tick()
            assert saved == wanted
            assert 0 <= left_s <= 60
        stream.step([1, 1])
        saver.tick(early=True)
        assert saved == [2, 3, 4]

        def slow(path: Path, note: str) -> None:
            clock.now_s += 2

        monkeypatch.setattr(stream, "save", slow)
        stream.step([1, 1])
        clock.now_s = 500
        assert saver.tick() == 54  # the next save begins at 556 and has twice 2 s until 560

        def fail(path: Path, note: str) -> None:
            raise EdgememError("the disk is full.")

        monkeypatch.setattr(stream, "save", fail)
        stream.step([1, 1])
        clock.now_s = 1000
        saver.tick()
        assert capsys.readouterr().err == "Warning: the disk is full.\n"
        with pytest.raises(EdgememError, match="full"):
            saver.save()
        assert Saver(stream, Note, tmp_path / "state", math.inf).tick(early=True) == math.inf


def test_systemd_hears_that_a_stream_is_ready_works_and_stops(
    summer: Path, invoke: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = under_systemd(monkeypatch, tmp_path, watchdog_s=60)
    assert invoke("run", summer, "--state", tmp_path / "state", input="1,2\n" * 9).exit_code == 0
    assert [messages.get(0) for _ in range(4)] == ["READY=1", "WATCHDOG=1", "STOPPING=1", None]


def test_the_watchdog_is_told_while_no_input_arrives(
    summer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = under_systemd(monkeypatch, tmp_path, watchdog_s=0.1)
    reader, writer = os.pipe()
    with edgemem.open(summer, threads=1) as session, os.fdopen(reader, "rb") as pipe:
        saver = Saver(session.stream(), Note, None, math.inf)
        threading.Timer(0.3, os.close, [writer]).start()
        assert list(Interrupt().blocks(pipe, "the sensor", saver.tick)) == []
    told = list(iter(lambda: messages.get(0), None))
    assert told[0] == "READY=1"
    assert told.count("WATCHDOG=1") >= 3


@pytest.mark.parametrize(("text", "seconds"), [("60s", 60), ("1.5", 1.5), ("5m", 300), ("2h", 7200)])
def test_a_time_has_a_unit(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["0", "-1s", "nan", "inf", "1d", "s", "", "1e9", "9" * 5000])
def test_what_is_not_a_time_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not a time such as 60s"):
        duration_s(text)


def test_a_wrong_time_names_its_option(summer: Path, invoke: Any) -> None:
    result = invoke("run", summer, "--save-every", "soon", input="1,2\n")
    assert result.exit_code == 2
    assert "Invalid value for '--save-every': 'soon' is not a time" in result.stderr


def test_options_that_do_not_fit_each_other_are_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError, match="--state saves and continues"):
        SnapshotOptions(state=tmp_path / "a", save_to=tmp_path / "b").check()
    with pytest.raises(click.UsageError, match="--save-every needs"):
        SnapshotOptions(save_every_s=1.0).check()
    with pytest.raises(EdgememError, match="is not a folder"):
        SnapshotOptions(state=tmp_path / "none" / "state").check()


def test_a_snapshot_takes_the_place_of_a_file_alone(summer: Path, invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("mine")
    os.mkfifo(tmp_path / "fifo")
    for target, what in (("/dev/null", "a device"), (tmp_path / "link", "a link"), (tmp_path / "fifo", "a FIFO")):
        result = invoke("run", summer, "-", "--snapshot", target, input="1,2\n")
        assert (result.exit_code, result.stdout) == (1, ""), "it is found before a row is read"
        assert f"it is {what}, wanted a file" in " ".join(result.stderr.split())


def test_a_snapshot_keeps_the_permissions_of_the_one_before(summer: Path, invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "state").touch(0o600)
    assert invoke("run", summer, "-", "--snapshot", tmp_path / "state", input="1,2\n").exit_code == 0
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o600
