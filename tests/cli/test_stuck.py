"""Ctrl-C twice ends a process whose engine is in a call that does not return."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from edgemem.cli import stuck
from edgemem.cli.interrupt import Interrupt

pytestmark = pytest.mark.usefixtures("in_the_foreground")

STUCK = """
import hashlib
from edgemem.cli.interrupt import Interrupt
with Interrupt():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes in C, without Python's lock
"""


def test_a_second_signal_ends_a_process_in_which_no_handler_can_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    time.sleep(stuck._PATIENCE_S + 0.5)
    assert process.poll() is None  # one signal waits for the step
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "\nError: a step does not end. What was not saved is lost.\n"


def test_a_process_whose_handlers_run_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stuck, "_PATIENCE_S", 0.2)
    monkeypatch.setattr(os, "_exit", lambda code: pytest.fail("ended"))
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.5)
    assert interrupt.forced


def test_the_watch_ends_and_puts_back_what_was_there() -> None:
    before = signal.set_wakeup_fd(-1)
    with Interrupt():
        assert any(thread.name == "edgemem-signals" for thread in threading.enumerate())
    assert signal.set_wakeup_fd(before) == -1
    assert not any(thread.name == "edgemem-signals" for thread in threading.enumerate())
