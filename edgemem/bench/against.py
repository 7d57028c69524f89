"""Two builds of edgemem measured in turns: each in its own interpreter, on the same bundle.

A process has its own luck with addresses and huge pages, which shifts all of its steps by some per cent. So each build
is started several times, and the interval is that of the starts.
"""

from __future__ import annotations

import contextlib
import json
import statistics as plain
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.bench.measure import Progress, silent
from edgemem.bench.statistics import Interval, median_interval
from edgemem.errors import EdgememError

STARTS, ROUNDS, TURN_MS = 9, 10, 12.0
# It uses only what every version of edgemem has, since the other build may be an older one.
_WORKER = """\
import sys
sys.path[:] = [path for path in sys.path if path]
import gc, json, time
import numpy as np
import edgemem
path, runtime, threads, device = json.loads(sys.argv[1])
session = edgemem.open(path, runtime=runtime, threads=threads, device=device)
contract, rng = session.contract, np.random.default_rng(0)
def items(spec):
    shape = tuple(spec.item_shape) if contract.is_plain else (spec.step_items, *spec.item_shape)
    if "int" in spec.dtype or spec.dtype == "bool":
        return rng.integers(0, spec.vocab_size or 2, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype("float32" if spec.dtype == "bfloat16" else spec.dtype)
def value(array):
    return array if array.ndim else int(array)
data = {spec.name: value(items(spec)) for spec in contract.data}
held = {spec.name: rng.standard_normal((1, *spec.shape)).astype(spec.dtype) for spec in contract.held}
x, stream = (data if len(data) > 1 else next(iter(data.values()))), session.stream(held=held or None)
step, clock = stream.step, time.perf_counter_ns
for _ in range(20):
    step(x)
print(json.dumps([getattr(edgemem, "__file__", ""), sys.version.split()[0]]), flush=True)
gc.disable()
limit = contract.max_position
for line in sys.stdin:
    steps = int(line)
    if limit is not None and stream.position + steps + 3 > limit:
        stream.reset()
    times = []
    for i in range(steps + 3):
        start = clock()
        step(x)
        times.append(clock() - start)
    print(json.dumps(times[3:]), flush=True)
"""


@dataclass(frozen=True)
class Verdict:
    """How two builds compare.

    Attributes:
        ours: Where the build that is judged lies.
        theirs: Where the other lies.
        ratio: A step of ours over one of theirs; the interval is that of the starts.
        ours_ms: Median of ours.
        theirs_ms: Median of theirs.
    """

    ours: str
    theirs: str
    ratio: Interval
    ours_ms: float
    theirs_ms: float

    def is_slower(self, by: float) -> bool:
        """Whether ours is slower by more than that share, and not by chance."""
        return self.ratio.value > 1 + by and self.ratio.low is not None and self.ratio.low > 1


def against(
    bundle: Path,
    theirs: str,
    *,
    ours: str = sys.executable,
    runtime: str = "auto",
    threads: int | None = None,
    device: str = "auto",
    starts: int = STARTS,
    rounds: int = ROUNDS,
    progress: Progress = silent,
) -> Verdict:
    """Measure a bundle with two builds in turns.

    Args:
        bundle: The bundle; both builds must read it.
        theirs: The Python of an environment with the other build.
        ours: The Python of the build that is judged.
        runtime: As in :func:`edgemem.open`, and so ``threads`` and ``device``.
        threads: Threads of both engines.
        device: Where both run.
        starts: How often each build is started; an interval needs 6 or more.
        rounds: Turns of each start.
        progress: Called after each start.

    Raises:
        EdgememError: A build does not start, or does not read the bundle.
    """
    asked = json.dumps([str(bundle.resolve()), runtime, threads, device])
    ratios, own, other = [], [], []
    places = ("", "")
    order = np.random.default_rng(0)
    progress("starts of both builds", 0, starts)
    for start in range(starts):
        with _worker(ours, asked) as one, _worker(theirs, asked) as two:
            places = one.place, two.place
            steps = max(3, round(TURN_MS / max(1e-3, plain.median(one.turn(5)) / 1e6)))
            found = []
            for _ in range(rounds):
                turns = {}
                for worker in [(one, two), (two, one)][int(order.integers(2))]:
                    turns[worker] = plain.median(worker.turn(steps))
                found.append(turns[one] / turns[two])
                own.append(turns[one])
                other.append(turns[two])
            ratios.append(plain.median(found))
        progress("starts of both builds", start + 1, starts)
    return Verdict(*places, median_interval(ratios), plain.median(own) / 1e6, plain.median(other) / 1e6)


class _Worker:
    """One interpreter with a bundle open, that makes steps when asked."""

    def __init__(self, process: subprocess.Popen[str], python: str) -> None:
        self._process, self._python = process, python
        file, version = self._answer()
        self.place = f"{Path(str(file)).parent} (Python {version})"

    def turn(self, steps: int) -> list[int]:
        """Nanoseconds of so many steps, after three that are not timed."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(f"{steps}\n")
            self._process.stdin.flush()
        return [int(value) for value in self._answer()]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            with contextlib.suppress(ValueError):
                return json.loads(line)
        error = self._process.stderr.read() if self._process.stderr else ""
        last = (error.strip().splitlines() or ["it wrote nothing"])[-1]
        raise EdgememError(
            f"{self._python} does not run the bundle: {last}",
            hint="It must be the Python of an environment with edgemem and an engine that reads this bundle.",
        )


@contextlib.contextmanager
def _worker(python: str, asked: str) -> Iterator[_Worker]:
    try:
        process = subprocess.Popen(
            [python, "-c", _WORKER, asked],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    except OSError as error:
        raise EdgememError(f"{python} cannot be started: {error.strerror}.") from error
    try:
        yield _Worker(process, python)
    finally:
        process.kill()
        process.communicate()
