"""The loop of the benchmark chooses its inputs as ``edgemem run`` does, and refuses nonsense."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt
from edgemem.bench.loop import Inputs, Loop, new_stream
from edgemem.bundle import Bundle
from edgemem.contract import Contract, Framing, InputSpec, OutputSpec, StateSpec
from edgemem.errors import NonFiniteError
from edgemem.text import Sampler, generate
from tests.adopt.models import LEAKY, write

FEATURES = Contract((InputSpec("features", (3,)),), (OutputSpec("predictions", (2,)),), (StateSpec("h", (2,)),))


def test_the_inputs_are_those_of_run(tokens: Bundle) -> None:
    inputs = Inputs(tokens.contract)
    logits = np.full((1, 16), -np.inf, dtype=np.float32)
    logits[0, 7] = 0.0
    assert inputs.after(logits) == 7
    assert type(inputs.first()) is int
    assert inputs.sequence(600).shape == (600,)
    features = Inputs(FEATURES)
    assert features.first().shape == features.after(np.zeros((1, 2))).shape == (3,)
    assert features.sequence(600).shape == (600, 3)
    assert features.sequence(5).dtype == np.float32


def test_the_same_inputs_come_every_time() -> None:
    assert (Inputs(FEATURES).sequence(300) == Inputs(FEATURES).sequence(300)).all()


def test_a_model_that_puts_out_nan_is_not_measured(broken: Bundle) -> None:
    with edgemem.open(broken.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        loop.check()
        loop.step()
        with pytest.raises(NonFiniteError, match="position 1 the model outputs NaN"):
            loop.check()


def test_tokens_are_drawn_as_run_draws_them(tokens: Bundle) -> None:
    with edgemem.open(tokens.path, threads=1) as session:
        stream = session.stream()
        loop = Loop(stream, session.contract)
        turns, drawn = loop.turns(), []
        for _ in range(10):
            drawn.append(next(turns).token)
            assert loop.step_ns > 0
        first = Inputs(session.contract).first()
        again = list(generate(session.stream(), [first], Sampler(seed=0), max_tokens=11))
    assert drawn == [piece.token for piece in again[1:]], "the first token follows the prompt"


def test_turns_of_features_take_one_row_after_another() -> None:
    stream = Recorder()
    turns = Loop(stream, FEATURES).turns()
    for _ in range(3):
        next(turns)
    np.testing.assert_array_equal(stream.rows, Inputs(FEATURES).sequence(3))


def test_turns_begin_again_at_the_last_position() -> None:
    stream = Recorder()
    turns = Loop(stream, replace(FEATURES, max_position=4)).turns()
    positions = []
    for _ in range(9):
        next(turns)
        positions.append(stream.position)
    assert positions == [1, 2, 3, 0, 1, 2, 3, 0, 1]


class Recorder:
    """A stream that keeps its inputs."""

    def __init__(self) -> None:
        self.rows: list[np.ndarray] = []
        self.position = 0

    def step(self, x: np.ndarray) -> np.ndarray:
        self.rows.append(x)
        self.position += 1
        return np.zeros((1, 2), np.float32)

    def reset(self) -> None:
        self.position = 0

    feed = step_top = step


SEVERAL = Contract(
    (InputSpec("audio", (), takes=4, front_end=Framing(2)), InputSpec("speaker", (3,), role="held")),
    (OutputSpec("level", ()), OutputSpec("mask", (2,))),
    (StateSpec("h", (2,)),),
    max_chunk=8,
    position="none",
)


def test_inputs_of_a_model_that_takes_several_items_are_those_of_a_step() -> None:
    inputs = Inputs(SEVERAL)
    assert inputs.sampler is None
    assert inputs.first().shape == inputs.after({"level": np.zeros((1, 1))}).shape == (4,)
    assert inputs.sequence(5).shape == (20,)
    two = Inputs(replace(SEVERAL, input_specs=(*SEVERAL.input_specs, InputSpec("ids", (), "int64", vocab_size=9))))
    assert {name: value.shape for name, value in two.first().items()} == {"audio": (4,), "ids": (1,)}
    assert {name: value.shape for name, value in two.sequence(5).items()} == {"audio": (20,), "ids": (5,)}


def test_outputs_by_name_are_all_looked_at() -> None:
    loop = Loop(Recorder(), FEATURES)
    loop.output = {"level": np.zeros(1), "mask": np.zeros(2)}
    loop.check()
    loop.output["mask"][1] = np.nan
    with pytest.raises(NonFiniteError):
        loop.check()


def test_an_adopted_model_with_a_held_input_runs_in_the_loop(tmp_path: Path) -> None:
    text = LEAKY.replace("float[batch, 4] mem)", "float[batch, 4] mem, float[batch, 4] bias)")
    path = write(tmp_path / "held.onnx", text.replace("Add(kept, x)", "Sum(kept, x, bias)"))
    options = AdoptOptions(held=("bias",), states={"mem": "mem_out"}, steps=2)
    bundle = adopt(path, tmp_path / "bundle", options)
    with edgemem.open(bundle.path, threads=1) as session:
        loop = Loop(new_stream(session), session.contract)
        for _ in range(3):
            loop.step()
            loop.choose()
        loop.check()
        assert loop.stream.position == 3
