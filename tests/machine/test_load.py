"""How busy other programs keep the machine."""

import pytest

from edgemem.machine import load
from edgemem.machine.load import CpuTime


def test_the_time_of_this_process_is_not_that_of_others():
    before, after = CpuTime(10.0, 100.0, 5.0), CpuTime(20.0, 118.0, 13.0)
    assert after.others_since(before) == pytest.approx(1.0)
    assert before.others_since(before) == 0


def test_idle_time_is_not_busy_and_stolen_time_is(monkeypatch):
    monkeypatch.setattr(load, "read", lambda path: "cpu  100 20 30 9000 500 1 2 7 0 0\ncpu0 1 2\n")
    monkeypatch.setattr(load.os, "sysconf", lambda name: 100)
    found = CpuTime.now()
    assert found is not None
    assert found.busy_s == pytest.approx(1.6)


def test_a_system_that_does_not_say_is_not_loaded(monkeypatch):
    monkeypatch.setattr(load, "read", lambda path: None)
    assert CpuTime.now() is None
