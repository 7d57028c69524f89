"""The bundle through the runtime against the original file through a loop by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.adopt.by_hand import ByHand, hand_stream, random_stream
from edgemem.adopt.proof import TOLERANCE, difference
from edgemem.adopt.subject import Subject
from edgemem.bundle import open_bundle
from edgemem.contract import Contract
from edgemem.contract.items import as_passed, items_of_steps, results_by_name
from edgemem.errors import VerificationError
from edgemem.measure import Change, change_tolerance
from edgemem.runtimes import Session, Stream
from edgemem.runtimes.ort.engine import OrtSession

Array = NDArray[Any]
Progress = Callable[[str, int, int], None]
LARGEST = 1e-6
"""Largest difference where operators are unchanged, as a share of an output's spread. It is 0 in all known files."""
_BLOCK, _STEPS, _BATCH = 250, 12, 3


@dataclass(frozen=True)
class Compared:
    """What a comparison with the original found.

    Attributes:
        largest_difference: As a share of the output's spread.
        change: Root mean square of the difference as a share of the output's standard deviation, where the bundle
            computes in reduced precision; else ``None``.
        change_tolerance: The largest that is allowed; ``None`` like ``change``.
    """

    largest_difference: float
    change: float | None = None
    change_tolerance: float | None = None


def compare(
    folder: Path, subject: Subject, steps: int, progress: Progress | None = None, *, largest_allowed: float = LARGEST
) -> Compared:
    """Stream random data through both, and compare every output of every step.

    Args:
        folder: The bundle.
        subject: The original, its states paired.
        steps: Steps to stream.
        progress: Called with a phase's name, the steps done and the steps in all.
        largest_allowed: Largest difference that is allowed, as a share of an output's spread, unless the bundle
            computes in reduced precision: then its outputs may change as much as that precision allows.

    Raises:
        VerificationError: It is too large; the tensor is named, and the first step where precision is not reduced.
    """
    bundle = open_bundle(folder)
    contract, precision = bundle.contract, bundle.manifest.precision
    allowed = None if precision.is_plain else change_tolerance(precision)
    largest, changes = 0.0, {spec.name: Change() for spec in contract.output_specs}
    with OrtSession(bundle, device="cpu", threads=1) as session:
        _compare_larger_calls(session, subject, contract, allowed)
        first = random_stream(contract, subject, 1)
        held = {spec.name: first[spec.name] for spec in contract.held}
        stream, hand = session.stream(held=held or None), ByHand(subject, contract, held)
        for start in range(0, steps, _BLOCK):
            count = min(_BLOCK, steps - start)
            items = random_stream(contract, subject, count, seed=start)
            got, wanted = [], []
            for at in range(count):
                part = items_of_steps(contract, items, at, at + 1)
                got.append(_fed(contract, stream, part))
                wanted.append(hand.step(part))
            for spec in contract.output_specs:
                ours, theirs = (np.stack([step[spec.name] for step in steps_of]) for steps_of in (got, wanted))
                found = difference(ours, theirs)
                if allowed is None or ours.dtype.kind == "f":
                    largest = max(largest, found)
                if allowed is not None:
                    changes[spec.name].add(ours, theirs)
                elif not found <= largest_allowed:
                    first_step = int(np.argmax([difference(a, b) > 0 for a, b in zip(ours, theirs, strict=True)]))
                    raise _fault(spec.name, found, f"first at step {start + first_step}")
            if progress is not None:
                progress("streaming", start + count, steps)
    if allowed is None:
        return Compared(largest)
    for name, each in changes.items():
        if not each.share <= allowed:
            raise _changes(name, each.share, allowed)
    return Compared(largest, max(each.share for each in changes.values()), allowed)


def _compare_larger_calls(session: Session, subject: Subject, contract: Contract, allowed: float | None) -> None:
    """Compare several streams in a batch, in calls of several steps, where the contract offers these."""
    batch = _BATCH if contract.has_batches else 1
    if batch == contract.max_chunk == 1:
        return
    items = random_stream(contract, subject, _STEPS, batch)
    wanted = hand_stream(subject, contract, items, _STEPS, 1)
    stream = session.stream(batch, held={spec.name: items[spec.name] for spec in contract.held} or None)
    got = _fed(contract, stream, {spec.name: items[spec.name] for spec in contract.data})
    for name, value in wanted.items():
        if allowed is None and not (found := difference(got[name], value)) <= TOLERANCE:
            raise _fault(name, found, f"with {batch} streams and calls of {min(_STEPS, contract.max_chunk)} steps")
        if allowed is not None and not (share := Change().add(got[name], value).share) <= allowed:
            raise _changes(name, share, allowed)


def _fed(contract: Contract, stream: Stream, items: dict[str, Array]) -> dict[str, Array]:
    """Every result of feeding items, by name."""
    return results_by_name(contract, stream.feed(as_passed(contract, items), outputs="all"))


def _changes(name: str, share: float, allowed: float) -> VerificationError:
    return VerificationError(
        f"{name} changes by {share:.1%} of its standard deviation in this precision (at most {allowed:.0%}).",
        hint="Leave out --dtype and --weights, or store less exactly only one of both.",
    )


def _fault(name: str, found: float, where: str) -> VerificationError:
    return VerificationError(
        f"{name} differs from the original by {found:.1e} of its spread, {where}.",
        hint="This is a fault of edgemem: please report it with the model's name.",
    )
