"""The bundle through the runtime against the original file through a loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from edgemem.adopt.by_hand import ByHand, random_items
from edgemem.adopt.proof import difference
from edgemem.adopt.subject import Subject
from edgemem.bundle import open_bundle
from edgemem.errors import VerificationError
from edgemem.runtimes.ort.engine import OrtSession

Progress = Callable[[str, int, int], None]
LARGEST = 1e-6
"""Largest difference where operators are unchanged, as a share of an output's spread. It is 0 in all known files."""
_BLOCK = 250


def compare(
    folder: Path, subject: Subject, steps: int, progress: Progress | None = None, *, largest_allowed: float = LARGEST
) -> float:
    """Stream random data through both, and compare every output of every step.

    Args:
        folder: The bundle.
        subject: The original, its states paired.
        steps: Steps to stream.
        progress: Called with a phase's name, the steps done and the steps in all.
        largest_allowed: Largest difference that is allowed, as a share of an output's spread.

    Returns:
        The largest difference as a share of the output's spread.

    Raises:
        VerificationError: It is too large; the first step and tensor are named.
    """
    bundle = open_bundle(folder)
    contract = bundle.contract
    generator = np.random.default_rng(5)
    held = {s.name: generator.standard_normal((1, *s.shape)).astype(s.dtype) for s in contract.held}
    hand, largest = ByHand(subject, contract, held), 0.0
    with OrtSession(bundle, device="cpu", threads=1) as session:
        stream = session.stream(held=held or None)
        for start in range(0, steps, _BLOCK):
            count = min(_BLOCK, steps - start)
            items = random_items(contract, subject, count, generator)
            got, wanted = [], []
            for at in range(count):
                part = {s.name: items[s.name][:, at * s.step_items : (at + 1) * s.step_items] for s in contract.data}
                result = stream.feed(part if len(part) > 1 else part[contract.input.name], outputs="all")
                got.append(dict(result) if isinstance(result, Mapping) else {contract.output.name: result})
                wanted.append(hand.step(part))
            for spec in contract.output_specs:
                ours, theirs = (np.stack([step[spec.name] for step in steps_of]) for steps_of in (got, wanted))
                largest = max(largest, found := difference(ours, theirs))
                if not found <= largest_allowed:
                    first = start + int(np.argmax([difference(a, b) > 0 for a, b in zip(ours, theirs, strict=True)]))
                    raise VerificationError(
                        f"{spec.name} differs from the original by {found:.1e} of its spread, first at step {first}.",
                        hint="This is a fault of edgemem: please report it with the model's name.",
                    )
            if progress is not None:
                progress("streaming", start + count, steps)
    return largest
