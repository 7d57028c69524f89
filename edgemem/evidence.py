"""Which memory for how many bytes: what small trained models scored, and what that says for a budget.

The figures are in ``evidence.json``, which ``make evidence`` writes from its results (docs/evidence.md). Each model was
exported and scored through its bundle.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.errors import EdgememError
from edgemem.versioned import JsonFormat

FILE = Path(__file__).with_name("evidence.json")
EVIDENCE = JsonFormat("edgemem.evidence", "edgemem's evidence on memories", EdgememError, "install edgemem again")
# Student's t for 95 %, by the number of values.
_T = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
_T_OF_MANY = 2.2


@dataclass(frozen=True)
class Task:
    """What models were trained and scored on.

    Attributes:
        what: The task, in words.
        columns: The scores whose mean is the quality.
        unit: What the quality measures.
        more_is_better: Whether more of it is better.
        failed_at: A model at this quality, or worse, learned nothing.
    """

    what: str
    columns: tuple[str, ...]
    unit: str
    more_is_better: bool
    failed_at: float

    def quality(self, scores: Mapping[str, float]) -> float:
        """The mean of its columns."""
        return statistics.fmean(scores[name] for name in self.columns)

    def failed(self, quality: float) -> bool:
        """Whether a model of this quality learned nothing."""
        if not math.isfinite(quality):
            return True
        return quality <= self.failed_at if self.more_is_better else quality >= self.failed_at


PAIRS, DISTANCES = (8, 32, 128), (64, 256, 1024, 4096)
TASKS = {
    "recall": Task(
        "associative recall: the values of 8, 32 and 128 keys",
        tuple(f"mqar-{pairs}" for pairs in PAIRS),
        "answers right",
        True,
        0.045,
    ),
    "distance": Task(
        "recall at a distance: the values of 8 keys, 64 to 4,096 steps back",
        tuple(f"recall-{steps}" for steps in DISTANCES),
        "answers right",
        True,
        0.045,
    ),
    "text": Task("the next byte of Python's documentation", ("bits per byte",), "bits per byte", False, 4.5),
    "sensor": Task(
        "the next sample of a pulse sensor with unknown gain and offset",
        ("same person, later",),
        "RMS error",
        False,
        1.0,
    ),
    "copying": Task("selective copying: 4 values scattered over 28 steps", ("copying",), "answers right", True, 0.045),
}


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and its 95 % interval, which one seed does not have.

    Attributes:
        values: One for each seed.
    """

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def half(self) -> float | None:
        """Half the interval's width, from Student's t; ``None`` for one seed."""
        count = len(self.values)
        if count < 2:
            return None
        return _T.get(count, _T_OF_MANY) * statistics.stdev(self.values) / math.sqrt(count)

    def may_equal(self, other: Mean) -> bool | None:
        """Whether the intervals overlap; ``None`` where one seed leaves it open."""
        if self.half is None or other.half is None:
            return None
        return abs(self.value - other.value) <= self.half + other.half

    def text(self, digits: int = 3) -> str:
        """``0.912 ± 0.031``, or ``0.912 (one seed)``."""
        spread = "(one seed)" if self.half is None else f"± {self.half:.{digits}f}"
        return f"{self.value:.{digits}f} {spread}"


@dataclass(frozen=True)
class Entry:
    """A memory at a budget on a task.

    Attributes:
        row: Its key.
        label: Its name.
        turned: What was turned to meet the budget.
        budget: Bytes of state it was made for; 0 for a state that grows.
        state_bytes: Bytes of state of one stream.
        memory: The memories of each layer, as in a configuration.
        rate: The learning rate that was chosen.
        rates: Those that were tried.
        scores: By column, one value for each seed.
        step_us: Microseconds of a step on the machine where it was measured.
        calibration_us: What :func:`calibrate` took there.
        engine_bytes: Bytes of the graph and its weights.
    """

    row: str
    label: str
    turned: str
    budget: int
    state_bytes: int
    memory: list[dict[str, Any]] = field(hash=False)
    rate: float
    rates: tuple[float, ...]
    scores: Mapping[str, list[float]] = field(hash=False)
    step_us: float
    calibration_us: float
    engine_bytes: int

    def mean(self, *columns: str) -> Mean:
        """The mean of some columns, by seed."""
        by_seed = zip(*(self.scores[name] for name in columns), strict=True)
        return Mean(tuple(map(statistics.fmean, by_seed)))

    def quality(self, task: str) -> Mean:
        """Its quality on a task."""
        return self.mean(*TASKS[task].columns)


@dataclass(frozen=True)
class Evidence:
    """All that was measured.

    Attributes:
        entries: By task.
        not_tried: What was planned and has no result yet, by task: rows with their budgets.
        machine: Where the steps were timed.
    """

    entries: Mapping[str, list[Entry]]
    not_tried: Mapping[str, list[str]]
    machine: str

    @classmethod
    def from_json(cls, data: Any, where: str = "the evidence") -> Evidence:
        """Read what the harness wrote.

        Raises:
            EdgememError: It is of another format.
        """
        values = EVIDENCE.check(data, where).values
        entries = {
            task: [Entry(**{**entry, "rates": tuple(entry["rates"])}) for entry in values["entries"].get(task, [])]
            for task in TASKS
        }
        return cls(entries, values["not_tried"], values["machine"])

    @classmethod
    def load(cls, path: Path = FILE) -> Evidence:
        """Read the evidence that this edgemem brings.

        Raises:
            EdgememError: The file is missing or of another format.
        """
        return cls.from_json(EVIDENCE.load(path).values, str(path))


def calibrate(clock: Callable[[], float] = time.thread_time, rounds: int = 9) -> float:
    """Microseconds that small products of matrices take here: what a step of a small model mostly consists of.

    Args:
        clock: Seconds.
        rounds: The median of so many is taken.
    """
    x, w = np.ones((1, 64), np.float32), np.full((64, 384), 0.01, np.float32)
    times = []
    for _ in range(rounds):
        began = clock()
        for _ in range(200):
            np.exp(x @ w).sum(axis=-1)
        times.append((clock() - began) / 200 * 1e6)
    return statistics.median(times)


@dataclass(frozen=True)
class Offer:
    """A row that no other row beats in everything.

    Attributes:
        entry: What was measured.
        quality: On the task.
        step_us: Estimated for this machine.
        may_be_best: Whether its interval overlaps that of the best row; ``None`` where one of them has one seed.
    """

    entry: Entry
    quality: Mean
    step_us: float
    may_be_best: bool | None


def offers(
    evidence: Evidence, task: str, budget: int, speed: float = 1.0, rate_hz: float | None = None
) -> tuple[list[Offer], list[Entry]]:
    """The rows worth a look for a budget, the best first, and those whose step takes longer than the rate allows.

    A row is left out if another takes no more bytes and no more time and is better, by the means.

    Args:
        evidence: What was measured.
        task: A name of :data:`TASKS`.
        budget: Most bytes of state of a stream.
        speed: How many times longer this machine takes than the one where the steps were timed, for the same step.
        rate_hz: Steps a second that one core must reach.
    """
    fitting = [entry for entry in evidence.entries[task] if entry.budget and entry.state_bytes <= budget]
    slow = [entry for entry in fitting if rate_hz and entry.step_us * speed * rate_hz > 1e6]
    left = [entry for entry in fitting if entry not in slow]
    best = sorted(left, key=lambda entry: _cost(entry, task))
    shown = [entry for entry in best if not any(_beats(other, entry, task) for other in left)]
    return [
        Offer(entry, entry.quality(task), entry.step_us * speed, entry.quality(task).may_equal(best[0].quality(task)))
        for entry in shown
    ], slow


def _cost(entry: Entry, task: str) -> float:
    return (-1 if TASKS[task].more_is_better else 1) * entry.quality(task).value


def _beats(one: Entry, other: Entry, task: str) -> bool:
    mine, its = ((_cost(each, task), each.step_us, each.state_bytes) for each in (one, other))
    return mine != its and all(a <= b for a, b in zip(mine, its, strict=True))


def ceiling(evidence: Evidence, task: str) -> Sequence[Entry]:
    """The rows whose state grows: what a budget gives up."""
    return [entry for entry in evidence.entries[task] if not entry.budget]
