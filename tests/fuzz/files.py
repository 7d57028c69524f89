"""Mutated files: ``python -m tests.fuzz.files`` runs them in processes of their own, and counts what happens.

A mutated file is refused with an :class:`EdgememError`, or it loads. What hashes guard loads only as the same. Nothing
else may happen: no other exception, no crash, no case of more than 30 seconds, no negative position.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from edgemem.errors import EdgememError
from tests.fuzz.targets import TARGETS, Target

_CASE_SECONDS = 30
_BATCH = 2000  # of each target, and more of those that are quickly loaded
_QUICK = {"bundle of features": 3, "snapshot": 3, "engine": 3}
_MEMORY_BYTES = 16 << 30
BAD = ("another exception", "silent wrong load", "hang", "crash")


def brief(error: BaseException) -> str:
    """Where an exception was raised, and what it says, in a line."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames)) + f": {error!r:.300}"


class HangError(BaseException):
    """A case took too long."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise :class:`HangError` in the block after so many seconds."""

    def end(number: int, frame: FrameType | None) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(name: str, target: Target, number: int) -> tuple[str, str]:
    """What becomes of one mutation, in a word, and the details of what may not happen."""
    rng = random.Random(f"{name} {number}")
    try:
        fits = target.change(rng)
        with time_limit(_CASE_SECONDS):
            found = target.use()
    except EdgememError as error:
        return ("refused", "") if error.message.strip() else ("another exception", "an empty message")
    except HangError as error:
        return "hang", brief(error)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "another exception", brief(error)
    finally:
        target.restore()
    if found == target.expected:
        return "the same", ""
    if target.protected and not fits:
        return "silent wrong load", f"{found!r:.500} instead of {target.expected!r:.500}"
    return "another model", ""


def run_cases(name: str, first: int, count: int) -> Iterator[tuple[int, str, str]]:
    """The number of each case, and what :func:`run_case` returns."""
    with tempfile.TemporaryDirectory(prefix="edgemem-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(folder, "case")
        place.mkdir()
        target = TARGETS[name](place)
        for number in range(first, first + count):
            yield (number, *run_case(name, target, number))


def child(name: str, first: int, count: int) -> None:
    """Run a batch in this process; a line of JSON for each case."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    for number, outcome, details in run_cases(name, first, count):
        print("\n" + json.dumps(["case", number, outcome, details]), flush=True)


def run_apart(name: str, first: int, count: int) -> Iterator[tuple[int, str, str]]:
    """Run a batch in other processes. One that crashes or hangs ends its case; the next goes on behind it."""
    number, last = first, first + count
    while number < last:
        command = [sys.executable, "-m", "tests.fuzz.files", "--child", name, str(number), str(last - number)]
        with (
            tempfile.TemporaryFile("w+", errors="replace") as log,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, errors="replace") as process,
        ):
            assert process.stdout is not None
            watchdog = Watchdog(process)
            for line in process.stdout:
                watchdog.feed()
                if line.startswith('["case"'):
                    _, number, outcome, details = json.loads(line)
                    yield number, outcome, details
                    number += 1
            ended = watchdog.stop()
            log.seek(0)
            words = log.read()[-2000:]
        if number < last:
            yield number, ended, words
            number += 1


class Watchdog:
    """Kills a process that gives no sign of life: Python's own alarm does not end a call that hangs in C."""

    def __init__(self, process: subprocess.Popen[str], seconds: float = 90) -> None:
        import threading

        self.process, self.seconds, self.timer_class = process, seconds, threading.Timer
        self.killed = False
        self.timer = self._start()

    def _start(self) -> Any:
        timer = self.timer_class(self.seconds, self._kill)
        timer.daemon = True
        timer.start()
        return timer

    def _kill(self) -> None:
        self.killed = True
        self.process.kill()

    def feed(self) -> None:
        """Note a sign of life."""
        self.timer.cancel()
        self.timer = self._start()

    def stop(self) -> str:
        """Stop watching; what ended the process."""
        self.timer.cancel()
        return "hang" if self.killed else "crash"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=300_000)
    parser.add_argument("--first", type=int, default=0, help="Number of the first case of each target.")
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], int(given.child[1]), int(given.child[2]))
        return
    names = given.target or list(TARGETS)
    each = -(-given.cases // sum(_QUICK.get(name, 1) for name in names))
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for done in range(0, each, _BATCH):
        for name in names:
            times, size = _QUICK.get(name, 1), min(_BATCH, each - done)
            for number, outcome, details in run_apart(name, given.first + done * times, size * times):
                counts[name][outcome] += 1
                if outcome in BAD:
                    print(f"{name} {number}: {outcome}: {details}", flush=True)
            print(
                f"{sum(count.total() for count in counts.values()):,} mutated files; {name}: {dict(counts[name])}",
                flush=True,
            )
    total = sum(counts.values(), Counter())
    print(f"{total.total():,} mutated files: " + ", ".join(f"{word} {count:,}" for word, count in total.items()))
    sys.exit(1 if any(total[word] for word in BAD) else 0)


if __name__ == "__main__":
    main()
