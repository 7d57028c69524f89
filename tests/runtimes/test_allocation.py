"""A stream runs for ever in the memory it started with."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgemem.bundle import Bundle
from edgemem.dtypes import element_type
from edgemem.runtimes import Session
from edgemem.runtimes.ort.engine import OrtSession
from tests.runtimes import tiny


def resident_bytes() -> int:
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("resident memory is read from /proc")
    return int(status.read_text().split()[1]) * 4096


@pytest.mark.parametrize("batch", [1, 3])
def test_thousands_of_steps_leave_nothing_allocated(session: Session, batch: int) -> None:
    stream = session.stream(batch)
    stream.load_state(stream.state(), np.arange(batch))
    x = np.arange(batch) if batch > 1 else 3
    tracemalloc.start()
    try:
        for _ in range(200):
            stream.step(x)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(4000):
            stream.step(x)
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 2048  # half a byte a step: caches of the interpreter, no object of ours
    assert peak - before < 16384


def test_resident_memory_does_not_grow(session: Session) -> None:
    """What leaks grows in every window of time; what else the process does (its other tests) in some of them."""
    stream = session.stream()

    def growth_bytes(rounds: int) -> int:
        before = resident_bytes()
        for i in range(rounds):
            for token in range(10):
                stream.step(token)
            stream.feed([1, 2, 3, 4, 5, 6, 7, 8, 9][: 2 + i % 7])
            if i % 50 == 0:
                stream.fork().restore(stream.snapshot())
        return resident_bytes() - before

    growth_bytes(300)
    assert min(growth_bytes(400) for _ in range(5)) < 1 << 17  # 24 bytes a step


def test_the_engine_reads_rings_and_inputs_where_they_lie(session: Session) -> None:
    """A ring is changed between two runs of one binding: an engine that kept a copy would not see it."""
    stream = session.stream()
    stream.feed([1, 2, 3, 4, 5])
    snapshot = stream.snapshot()
    first = stream.step(6).copy()
    for change in (1.0, 2.0, -3.0):
        stream.restore(snapshot)
        state = stream.state()
        state["1.window.k"] += np.float32(change)
        stream.load_state(state, 5)
        np.testing.assert_allclose(stream.step(6)[0, tiny.WIDTH] - first[0, tiny.WIDTH], 5 * change, rtol=1e-5)


def test_every_dtype_of_a_contract_is_named_as_onnxruntime_names_it(tokens_bundle: Bundle) -> None:
    with OrtSession(tokens_bundle, threads=1, device="cpu") as session:
        found = {arg.name: arg.type for arg in session.engine.graph_for(1)[1].get_inputs()}
    assert found["past.1.count.n"] == element_type("int64").ort
