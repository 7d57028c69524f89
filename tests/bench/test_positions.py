"""A stream is put at a position with a state that the model reached itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import edgemem
from edgemem.bench import measure, positions
from edgemem.bench.loop import Loop
from edgemem.bench.sections.sweep import Positions
from edgemem.bundle import Bundle
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from tests.bench.examples import example_result


@pytest.mark.parametrize("position", [0, 1, 3, 7])
def test_an_injected_state_stands_at_its_position(position: int) -> None:
    sealed = Contract(
        (InputSpec("tokens", (), "int64", 4),),
        (OutputSpec("logits", (4,)),),
        (StateSpec("position", (), "int64"), StateSpec("kv.k", (2, None, 3)), StateSpec("sum", (5,))),
        position="none",
    )
    reached = {
        "position": np.array([2], dtype=np.int64),
        "kv.k": np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3),
        "sum": np.ones((1, 5), dtype=np.float32),
    }
    moved = positions.state_at(sealed, reached, position)
    assert moved["position"].tolist() == [position]
    assert moved["kv.k"].shape == (1, 2, position, 3)
    for i in range(position):
        assert (moved["kv.k"][:, :, i] == reached["kv.k"][:, :, i % 2]).all()
    assert moved["sum"] is reached["sum"]


def test_an_empty_growing_state_cannot_be_stretched() -> None:
    growing = Contract(
        (InputSpec("tokens", (), "int64", 4),), (OutputSpec("logits", (4,)),), (StateSpec("kv.k", (2, None, 3)),)
    )
    with pytest.raises(ValueError, match="nothing to repeat"):
        positions.state_at(growing, {"kv.k": np.zeros((1, 2, 0, 3), dtype=np.float32)}, 4)


def test_a_sweep_steps_at_each_position_with_the_state_the_model_reached(tokens: Bundle) -> None:
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        contenders = positions.sweep_contenders("x", loop, session.contract, (0, 1_000, 10**9), seed_steps=9)
        assert [c.name for c in contenders] == ["x@0", "x@1000", "x@1000000000"]
        for contender, position in zip(contenders, (0, 1_000, 10**9), strict=True):
            contender.prepare()
            assert loop.stream.position == position
            assert loop.stream.state()["0.sum"].any() == (position > 0)
        samples = measure.interleave(contenders, rounds=6, steps=2)
        sweep = positions.sweep_of("x", samples, session.contract, (0, 1_000, 10**9))
    assert [p.position for p in sweep.points] == [0, 1_000, 10**9]
    assert {p.state_bytes for p in sweep.points} == {tokens.contract.state_bytes}
    assert {p.samples for p in sweep.points} == {12}
    assert sweep.last_over_first.value == pytest.approx(
        float(np.median(np.median(samples["x@1000000000"], axis=1) / np.median(samples["x@1000"], axis=1)))
    )


@pytest.mark.parametrize(
    ("slope", "said"),
    [
        ((0.5, -0.1, 0.9), "do not get measurably slower"),
        ((0.5, 0.1, 0.9), "Steps get slower as the stream goes on"),
        ((-0.5, -0.9, -0.1), "Steps do not get slower"),
        ((0.5, None, None), "no interval after"),
    ],
)
def test_the_slope_is_said_in_words(slope: tuple[float, float | None, float | None], said: str) -> None:
    sweep = example_result()[Positions]
    interval = dataclasses.replace(sweep.slope_ns_per_1000_positions, value=slope[0], low=slope[1], high=slope[2])
    assert said in dataclasses.replace(sweep, slope_ns_per_1000_positions=interval).slope_sentence()
