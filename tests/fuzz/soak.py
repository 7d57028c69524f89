"""Streams that pass the positions where number formats end: ``python -m tests.fuzz.soak`` makes a million steps.

A stream far away and one near the start read the same tokens and must give the same outputs, before, at and after
2^24, 2^31, 2^32 and 2^53; a snapshot taken at each is restored, and the memory of the process stays as it is.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edgemem
from edgemem.machine.memory import resident_bytes
from edgemem.runtimes import Session, Stream
from tests.runtimes import tiny

PLACES = (1 << 24, 1 << 31, 1 << 32, 1 << 53)
_BLOCK = 12  # tokens that are read in single steps, or fed at once
_ALIGNED = 36  # every ring and every period of the models divides this


@dataclass
class Passed:
    """What was measured.

    Attributes:
        steps: Steps of the streams that were far away.
        compared: Steps whose outputs were compared.
        largest: The largest difference between the outputs of a far stream and of a near one.
        grown_bytes: What the process took between the first place and the last.
    """

    steps: int = 0
    compared: int = 0
    largest: float = 0.0
    grown_bytes: int = 0


def soak(session: Session, steps: int, washed_out: int) -> Passed:
    """Pass every place with so many steps in all.

    Args:
        session: A model that forgets: what it read more than ``washed_out`` steps ago does not matter.
        steps: Steps, half of them before a place and half after it.
        washed_out: Steps that a stream far away makes before its outputs are compared.
    """
    passed, rng, each = Passed(), np.random.default_rng(0), steps // len(PLACES) // (2 * _ALIGNED) * 2 * _ALIGNED
    vocabulary = session.contract.input.vocab_size
    before = 0
    for place in PLACES:
        start = (place - each // 2) // _ALIGNED * _ALIGNED
        near, far = session.stream(), at(session, start)
        for first in range(0, each, _BLOCK):
            tokens = rng.integers(0, vocabulary, _BLOCK)
            if start + first <= place < start + first + _BLOCK:
                snapshot, far = far.snapshot(), session.stream()
                far.restore(snapshot)
            difference = np.abs(read(far, tokens, first) - read(near, tokens, first)).max()
            if first >= washed_out:
                passed.compared += _BLOCK
                passed.largest = max(passed.largest, float(difference))
            assert far.position == start + first + _BLOCK
        assert far.position > place
        passed.steps += each
        before = before or resident_bytes()
    passed.grown_bytes = resident_bytes() - before
    return passed


def at(session: Session, position: int) -> Stream:
    """A stream at that position, whose state is the initial one."""
    stream = session.stream()
    state = stream.state()
    if "position" in state:
        state["position"][...] = position
    stream.load_state(state, position)
    return stream


def read(stream: Stream, tokens: np.ndarray, first: int) -> np.ndarray:
    """The outputs ``[T, ...]``: every other block is fed in chunks."""
    if first // _BLOCK % 2:
        return np.array(stream.feed(tokens, "all")[0], np.float64)
    return np.array([stream.step(int(token))[0] for token in tokens], np.float64)


def main() -> None:
    """Run the command line."""
    from tests.runtimes import decoders

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args().steps
    shared = [decoders.WINDOW, {"type": "compressed", "slots": 2, "rate": 3}, {"type": "moving_average", "window": 9}]
    with tempfile.TemporaryDirectory(prefix="edgemem-soak-") as folder:
        written = tiny.save_bundle(Path(folder, "tiny"), tiny.TOKENS, tiny.tokens_model())
        bundles = {"rings and a decayed sum": (written, 1e-4)}
        for sealed in (False, True):
            case = decoders.Case("sealed" if sealed else "rings", shared, {"sealed": sealed})
            bundles[f"a decoder, {case.name}"] = decoders.exported(case, Path(folder)), case.tolerance
        for name, (bundle, tolerance) in bundles.items():
            began = time.monotonic()
            with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
                passed = soak(session, steps if bundle.path.name == "tiny" else steps // 4, 200)
            print(
                f"{name}: {passed.steps:,} steps past 2^24, 2^31, 2^32 and 2^53 in {time.monotonic() - began:.0f} s, "
                f"outputs within {passed.largest:.1e} of those near the start, memory +{passed.grown_bytes:,} bytes",
                flush=True,
            )
            assert passed.compared > 0
            assert passed.largest <= tolerance, tolerance
            assert passed.grown_bytes < 8 << 20


if __name__ == "__main__":
    main()
