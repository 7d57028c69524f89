"""What a service tells systemd, and when."""

from __future__ import annotations

import math
import os
import socket
from pathlib import Path

import pytest

from edgemem.machine.systemd import Heartbeat, notify
from tests.service import under_systemd


def test_a_message_is_heard_where_somebody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    messages = under_systemd(monkeypatch, tmp_path)
    assert notify("READY=1")
    assert messages.get(1) == "READY=1"
    messages.close()
    assert not notify("READY=1")


def test_an_abstract_address_begins_with_an_at_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"edgemem-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("STOPPING=1")
        assert receiver.recv(100) == b"STOPPING=1"


def test_a_heart_beats_twice_in_a_period(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    messages = under_systemd(monkeypatch, tmp_path, watchdog_s=60)
    now_s = [100.0]
    monkeypatch.setattr("edgemem.machine.systemd.time.monotonic", lambda: now_s[0])
    heartbeat = Heartbeat()
    told = []
    for now_s[0], wait_s in ((100, 30), (110, 20), (129, 1), (130, 30), (200, 30)):
        assert heartbeat.beat() == wait_s
        told.append(messages.get(0))
    assert told == ["WATCHDOG=1", None, None, "WATCHDOG=1", "WATCHDOG=1"]


@pytest.mark.parametrize(
    "given", [{}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}]
)
def test_without_a_watchdog_for_this_process_no_heart_beats(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: dict[str, str]
) -> None:
    messages = under_systemd(monkeypatch, tmp_path)
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Heartbeat().beat() == math.inf
    assert messages.get(0) is None
