"""What must come out right, or the harness is wrong: full attention recalls, and a window alone does not reach far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

from edgemem.evidence import DISTANCES, Entry, Evidence
from evidence.draws import PAIRS, VALUES
from evidence.rows import LAYERS
from evidence.tasks import Distance

SOLVED = 0.99
CHANCE = 1 / VALUES
_SURE = 0.95


@dataclass(frozen=True)
class Gate:
    """A check of the harness.

    Attributes:
        what: What must hold.
        found: What was measured; empty if nothing was yet.
        holds: Whether it holds.
    """

    what: str
    found: str
    holds: bool

    @property
    def verdict(self) -> str:
        """In words."""
        return "not run yet" if not self.found else "holds" if self.holds else "**does not hold**"


def gates(evidence: Evidence) -> list[Gate]:
    """Every check, by the scores through bundles."""
    return [_solves(evidence, "recall", "mqar-32"), _solves(evidence, "distance", "recall-64"), *_windows(evidence)]


def reach(entry: Entry) -> int:
    """How many steps back the layers of a window alone see together."""
    return LAYERS * (int(entry.memory[0]["window"]) - 1)


def interval(share: float, answers: int, looks: int) -> tuple[float, float]:
    """Wilson's interval of a share of right answers: 95 % for all ``looks`` of such intervals together."""
    z = NormalDist().inv_cdf(1 - (1 - _SURE) / 2 / looks)
    middle = (share + z * z / (2 * answers)) / (1 + z * z / answers)
    half = z * sqrt(share * (1 - share) / answers + (z / (2 * answers)) ** 2) / (1 + z * z / answers)
    return middle - half, middle + half


def _solves(evidence: Evidence, task: str, column: str) -> Gate:
    found = [entry.mean(column) for entry in evidence.entries[task] if entry.row == "full"]
    what = f"full attention answers at least {SOLVED} of {column}"
    return Gate(what, found[0].text(), found[0].value >= SOLVED) if found else Gate(what, "", holds=False)


def _windows(evidence: Evidence) -> Iterator[Gate]:
    """A gate for each window and distance out of its reach. A seed more adds no answers: all have the same exam."""
    looks = [
        (entry, steps)
        for entry in evidence.entries["distance"]
        if entry.row == "window"
        for steps in DISTANCES
        if steps > reach(entry)
    ]
    if not looks:
        yield Gate("a window alone is at chance beyond its reach", "", holds=False)
    for entry, steps in looks:
        mean = entry.mean(f"recall-{steps}")
        low, high = interval(mean.value, Distance.SEQUENCES[steps] * PAIRS, len(looks))
        what = f"{entry.turned}, which sees {reach(entry)} steps back, is at chance ({CHANCE:.3f}) at {steps:,} steps"
        yield Gate(what, f"{mean.value:.3f}, interval {low:.3f} to {high:.3f}", low <= CHANCE)
