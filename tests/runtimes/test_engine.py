"""A whole engine in one class: what a runtime must write, and what a stream does with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from edgemem.contract import OUTPUT_INDICES, POSITION
from edgemem.errors import EdgememError
from edgemem.runtimes import Session
from edgemem.runtimes.engine import Call, Engine, Tensors
from tests.runtimes import tiny


def ring_sum(past: np.ndarray, entries: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """For each step the sum of the last ``W`` entries of ``[B, H, W, D]`` and ``[B, H, T, D]``: ``[B, H, T, D]``."""
    window, sums = past.shape[2], np.empty_like(entries)
    for row, position in enumerate(positions):
        # The ring from its oldest entry to its newest, then the new entries; slots never written hold zero.
        line = np.concatenate([np.roll(past[row], -(position % window), axis=1), entries[row]], axis=1)
        for step in range(entries.shape[2]):
            sums[row, :, step] = line[:, step + 1 : step + 1 + window].sum(1)
    return sums


class NumpyEngine(Engine):
    """Computes the model of :data:`tests.runtimes.tiny.TOKENS` with numpy, on the arrays themselves."""

    runtime: ClassVar[str] = "numpy"
    title: ClassVar[str] = "Numpy"

    def __init__(self) -> None:
        self.problem = ""
        self.made_ready: list[tuple[Call, Call]] = []

    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        given = {name: tensor.array for name, tensor in inputs.items()}
        results = {name: tensor.array for name, tensor in outputs.items()}
        return lambda: self.compute(given, results)

    def ready(self, steps: tuple[Call, Call]) -> tuple[Call, Call]:
        self.made_ready.append(steps)
        return steps

    def compute(self, given: dict[str, np.ndarray], results: dict[str, np.ndarray]) -> None:
        ids = given["tokens"]  # [B, T]
        embedded = tiny.TABLE[ids]  # [B, T, D]
        new = {"0.window.k": embedded[:, np.newaxis] * np.float32([1, -2]).reshape(2, 1, 1)}
        new["0.window.v"] = new["0.window.k"] ** 2
        new["1.window.k"] = ids[:, np.newaxis, :, np.newaxis].astype(np.float32)
        sums = {name: ring_sum(given[f"past.{name}"], value, given[POSITION]) for name, value in new.items()}
        decayed, everything = given["past.0.decayed.m"], []
        for step in range(ids.shape[1]):
            decayed = tiny.DECAY * decayed + embedded[:, step]
            count = given["past.1.count.n"][:, np.newaxis] + step + 1
            pairs = (sums["0.window.k"] + sums["0.window.v"])[:, :, step].sum(1)
            everything.append(np.concatenate([pairs + decayed, sums["1.window.k"][:, 0, step], count], axis=1))
        for name, value in new.items():
            results[f"append.{name}"][...] = value
        results["present.0.decayed.m"][...] = decayed
        results["present.1.count.n"][...] = given["past.1.count.n"] + ids.shape[1]
        results["logits"][...] = np.stack(everything, axis=1)[:, given[OUTPUT_INDICES]]
        if self.problem:
            raise RuntimeError(self.problem)


@pytest.fixture
def engine() -> NumpyEngine:
    return NumpyEngine()


@pytest.fixture
def session(engine: NumpyEngine) -> Session:
    return Session(tiny.TOKENS, None, engine)


def close_to_formula(values: Any, histories: list[list[int]]) -> None:
    wanted = np.stack([tiny.tokens_outputs(history) for history in histories])
    np.testing.assert_allclose(values, wanted, atol=2e-5, rtol=1e-5)


def test_steps_and_feeds_of_any_length_give_the_formula(session: Session) -> None:
    histories = [[(3 * i) % tiny.VOCAB for i in range(29)], [(5 * i + 1) % tiny.VOCAB for i in range(29)]]
    x, stepping, feeding = np.array(histories), session.stream(2), session.stream(2)
    close_to_formula(np.stack([stepping.step(column).copy() for column in x.T], axis=1), histories)
    parts = np.split(x, [1, 3, 6, 10, 15, 24], axis=1)
    close_to_formula(np.concatenate([feeding.feed(part, "all") for part in parts], axis=1), histories)
    wanted = tiny.stacked([tiny.tokens_state(history) for history in histories])
    for stream in (stepping, feeding):
        for name, value in wanted.items():
            np.testing.assert_allclose(stream.state()[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_rows_at_different_positions_and_a_fork_give_the_formula(session: Session) -> None:
    stream = session.stream(2)
    stream.feed([[1, 2, 3, 4, 5, 6, 7]] * 2)
    stream.reset([1])
    fork = stream.fork([1, 0])
    close_to_formula(stream.feed([[8, 9, 10]] * 2, "all")[1:], [[8, 9, 10]])
    np.testing.assert_allclose(fork.step([1, 8]), [tiny.tokens_outputs(h)[-1] for h in ([1], [*range(1, 9)])], 1e-5)


def test_ready_is_called_once_for_each_stream_with_a_call_for_each_copy_of_the_state(
    engine: NumpyEngine, session: Session
) -> None:
    stream = session.stream()
    for _ in range(5):
        stream.step(1)
    stream.feed([1, 2, 3])
    stream.reset()
    ((first, second),) = engine.made_ready
    assert first is not second
    session.stream()
    assert len(engine.made_ready) == 2


@pytest.mark.parametrize("call", [lambda s: s.step(1), lambda s: s.step_top(1), lambda s: s.feed([1, 2, 3])])
def test_a_failing_run_names_the_position_and_leaves_the_stream_as_it_was(
    engine: NumpyEngine, session: Session, call: Callable[[Any], Any]
) -> None:
    stream, history = session.stream(), [1, 2, 3, 4, 5, 6, 7]
    stream.feed(history)
    before = stream.snapshot()
    engine.problem = "a bad day"  # found after the outputs have been written
    with pytest.raises(EdgememError, match="Numpy failed at position 7: a bad day"):
        call(stream)
    assert stream.snapshot() == before
    engine.problem = ""
    np.testing.assert_allclose(stream.step(8)[0], tiny.tokens_outputs([*history, 8])[-1], atol=2e-5, rtol=1e-5)
