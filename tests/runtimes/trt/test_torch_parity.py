"""Exported models on the device runtime give what torch gives: every memory, chunking, batch and form of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.bundle import Bundle
from edgemem.runtimes import Session
from tests.runtimes.decoders import CASES, VOCAB, Case, near
from tests.runtimes.trt.machine import machine

BATCH = 2


@dataclass
class Pair:
    case: Case
    torch: Session
    device: Session


@pytest.fixture(
    scope="module",
    params=[("tokens", "tensorrt"), ("sealed", "tensorrt-rtx"), ("float16", "tensorrt")],
    ids=lambda param: param[0],
)
def pair(request: pytest.FixtureRequest, exported: Callable[[str], Bundle]) -> Iterator[Pair]:
    name, runtime = request.param
    bundle = exported(name)
    with (
        machine(runtime) as here,
        here.open(bundle, max_batch=BATCH) as device,
        edgemem.open(bundle.path, "torch") as reference,
    ):
        yield Pair(CASES[name], reference, device)


@given(turns=st.lists(st.tuples(st.sampled_from(["step", "all", "last", "reset"]), st.integers(1, 9)), max_size=7))
@settings(max_examples=5, deadline=None)
def test_any_chunking_gives_what_torch_gives(pair: Pair, turns: list[tuple[str, int]]) -> None:
    case, rng = pair.case, np.random.default_rng(len(turns))
    ours, theirs = pair.device.stream(BATCH), pair.torch.stream(BATCH)
    for how, length in [*turns, ("all", 5), ("step", 2)]:
        x = rng.integers(0, VOCAB, (BATCH, length))
        if how == "reset":
            for stream in (ours, theirs):
                stream.reset([length % BATCH])
        elif how == "step":
            for i in range(length):
                near(case, ours.step(x[:, i]), theirs.step(x[:, i]))
        else:
            near(case, ours.feed(x, how), theirs.feed(x, how))
    assert ours.positions.tolist() == theirs.positions.tolist()
    for name, value in theirs.state().items():
        near(case, ours.state()[name], value, name)


def test_steps_past_the_wrap_then_a_fork_and_torchs_own_snapshot(pair: Pair) -> None:
    case, rng = pair.case, np.random.default_rng(0)
    ours, theirs = pair.device.stream(), pair.torch.stream()
    for x in rng.integers(0, VOCAB, 23):
        near(case, ours.step(x), theirs.step(x))
    fork = ours.fork()
    for x in rng.integers(0, VOCAB, 9):
        near(case, ours.step(x), theirs.step(x))
    for x in (5, 6, 7):
        fork.step(x)
    fork.restore(theirs.snapshot())
    assert fork.snapshot() == theirs.snapshot()
    near(case, fork.step(x), theirs.step(x))


def test_the_step_after_a_round_trip_is_bit_equal(pair: Pair) -> None:
    rng = np.random.default_rng(1)
    stream, other = pair.device.stream(BATCH), pair.device.stream(BATCH)
    stream.feed(rng.integers(0, VOCAB, (BATCH, 11)))
    stream.step(rng.integers(0, VOCAB, BATCH))
    other.feed(rng.integers(0, VOCAB, (BATCH, 4)))
    other.restore(stream.snapshot())
    x = rng.integers(0, VOCAB, BATCH)
    np.testing.assert_array_equal(other.step(x), stream.step(x))
    assert other.snapshot() == stream.snapshot()
