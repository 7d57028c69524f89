"""Ways to call the command line, and the bundles that its tests share."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from edgemem.cli import main
from tests.handmade import write_reciter, write_summer

# A test run in the background may have SIGINT ignored, which children inherit.
_PROGRAM = """
import signal; signal.signal(signal.SIGINT, signal.default_int_handler)
from edgemem.cli import main; main()
"""


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """The signal handlers of a program in the foreground, whatever the tests run in; put back afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("bundles") / "reciter")


@pytest.fixture(scope="session")
def id_reciter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reciter(tmp_path_factory.mktemp("bundles") / "id_reciter", tokenizer=None)


@pytest.fixture(scope="session")
def summer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_summer(tmp_path_factory.mktemp("bundles") / "summer")


def edgemem(*arguments: object) -> Result:
    """Call the command line in this process, for fixtures that outlive a test."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Call the command line in this process; every failure must be one that it foresees."""

    def call(*arguments: object, input: str | bytes | None = None) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=input)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        assert "Traceback" not in result.output
        return result

    return call


def signal_until(process: subprocess.Popen[bytes], number: int, is_heard: Callable[[float], bool]) -> None:
    """Send a signal to a program that waits for input, until ``is_heard(timeout_s)`` says that it was heard.

    Python sees a signal that comes just before the system call that waits only when that call returns: whoever sits
    there presses the keys again.
    """
    for _ in range(6):
        process.send_signal(number)
        if is_heard(5.0):
            return
    raise AssertionError(f"signal {number} was not heard")


def end_by_signal(process: subprocess.Popen[bytes], number: int) -> int:
    """The exit code of a program that waits for input and gets a signal."""

    def is_heard(timeout_s: float) -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
        return process.returncode is not None

    signal_until(process, number, is_heard)
    return int(process.returncode)


@pytest.fixture
def start() -> Any:
    """Start the command line in a process of its own, with pipes; it is ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def call(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
            **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
            bufsize=0,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
