"""Models that take or give several items of several tensors: hand-written graphs, each with an oracle in numpy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec, initial_bytes
from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes import Session
from tests.runtimes import tiny

START = np.array([[0.5, -1.0, 2.0], [0.25, 0.0, 1.0]], np.float32)  # [2, 3], where zeros would be wrong


def two_tensor_model() -> tuple[Contract, Any]:
    """``4`` samples and ``1`` pair a step; their sum is added to a state ``[2, B, 3]`` that starts at START.

    Outputs: the running total ``[B, 2, 3]`` (no time axis), and twice each pair of samples' mean, 2 a step.
    """
    contract = Contract(
        (
            InputSpec("samples", (), takes=4),
            InputSpec("scale", role="fixed", value=2.0),
            InputSpec("pair", (2,), time_axis=None),
            InputSpec("voice", (3,), role="held"),
        ),
        (OutputSpec("total", (2, 3), time_axis=None), OutputSpec("means", (), gives=2)),
        (StateSpec("0.sum.s", (2, 3), initial=initial_bytes(START, "float32"), batch_axis=1, input="h", output="hn"),),
        max_chunk=1,
        position="none",
    )
    n = tiny.Nodes()
    halves = n.Reshape("samples", n.const([0, 2, 2]))  # [B, 2, 2]
    n.Mul(n.ReduceMean(halves, n.const([2]), keepdims=0), "scale", out="means")
    level = n.ReduceSum("samples", n.const([1]))  # [B, 1]
    own = n.Add(n.Unsqueeze(n.Mul(level, "voice"), n.const([1])), n.Unsqueeze("pair", n.const([2])))  # [B, 2, 3]
    n.Add("h", n.Transpose(own, perm=[1, 0, 2]), out="hn")
    n.Transpose("hn", perm=[1, 0, 2], out="total")
    return contract, tiny.model_proto(contract, n)


class Oracle:
    """The same from its formula, in float64, for one stream."""

    def __init__(self, voice: np.ndarray) -> None:
        self.state, self.voice = START.astype(np.float64), voice

    def step(self, samples: np.ndarray, pair: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.state = self.state + samples.sum() * self.voice[None, :] + pair[:, None]
        return self.state.copy(), 2 * samples.reshape(2, 2).mean(1)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    contract, model = two_tensor_model()
    bundle = tiny.save_bundle(tmp_path_factory.mktemp("rates") / "two", contract, model)
    with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
        yield session


def data(steps: int, batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "samples": rng.normal(size=(batch, 4 * steps)).astype(np.float32),
        "pair": rng.normal(size=(batch, steps, 2)).astype(np.float32),
    }


def test_steps_equal_the_formula_from_an_initial_tensor_with_held_and_fixed_inputs(session: Session) -> None:
    voices = np.random.default_rng(1).normal(size=(2, 3)).astype(np.float32)
    stream, x = session.stream(2, held={"voice": voices}), data(5)
    oracles = [Oracle(voice) for voice in voices]
    for i in range(5):
        part = {"samples": x["samples"][:, 4 * i : 4 * i + 4], "pair": x["pair"][:, i]}
        found = stream.step(part)
        assert set(found) == {"total", "means"}
        assert found["total"].shape == (2, 2, 3)
        assert found["means"].shape == (2, 2)
        for row, oracle in enumerate(oracles):
            total, means = oracle.step(part["samples"][row], part["pair"][row])
            np.testing.assert_allclose(found["total"][row], total, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(found["means"][row], means, rtol=1e-5, atol=1e-6)
    assert stream.position == 5


@pytest.mark.parametrize("cuts", [[4] * 6, [1] * 24, [3, 8, 1, 12], [24]])
def test_any_cut_of_the_samples_gives_the_same_outputs(session: Session, cuts: list[int]) -> None:
    voice, x = np.ones(3, np.float32), data(6, batch=1)
    whole = session.stream(held={"voice": voice}).feed(x, "all")
    stream, totals, means, done, steps = session.stream(held={"voice": voice}), [], [], 0, 0
    for cut in cuts:
        due = (done + cut) // 4
        part = {"samples": x["samples"][:, done : done + cut], "pair": x["pair"][:, steps:due]}
        done += cut
        if due == steps:
            part["pair"] = np.empty((1, 0, 2), np.float32)
        found = stream.feed(part, "all")
        totals.append(found["total"])
        means.append(found["means"])
        steps = due
    np.testing.assert_array_equal(np.concatenate(totals, 1), whole["total"])
    np.testing.assert_array_equal(np.concatenate(means, 1), whole["means"])
    assert means[0].shape == (1, 2 * (cuts[0] // 4))


def test_what_is_left_over_lives_in_snapshots_and_forks_and_is_filled_up_at_the_end(session: Session) -> None:
    x = data(3, batch=1)
    stream = session.stream(held={"voice": np.ones(3)})
    stream.feed({"samples": x["samples"][:, :7], "pair": x["pair"][:, :1]}, "none")
    twin, restored = stream.fork(), session.stream()
    assert restored.restore(stream.snapshot("seven samples")) == "seven samples"
    rest = {"samples": x["samples"][:, 7:12], "pair": x["pair"][:, 1:]}
    wanted = stream.feed(rest, "all")
    for other in (twin, restored):
        found = other.feed(rest, "all")
        np.testing.assert_array_equal(found["total"], wanted["total"])
    assert wanted["total"].shape[1] == 2


def test_finish_pads_the_last_step_and_ends_the_stream(session: Session) -> None:
    voice, x = np.ones(3), data(2, batch=1)
    stream = session.stream(held={"voice": voice})
    stream.feed({"samples": x["samples"][:, :6], "pair": x["pair"][:, :1]}, "none")
    found = stream.finish(pad=0.5)
    oracle = Oracle(voice)
    oracle.step(x["samples"][0, :4], x["pair"][0, 0])
    total, means = oracle.step(np.array([*x["samples"][0, 4:6], 0.5, 0.5]), np.full(2, 0.5))
    np.testing.assert_allclose(found["total"][0, 0], total, rtol=1e-5)
    np.testing.assert_allclose(found["means"][0], means, rtol=1e-5)
    ended = session.stream()
    ended.restore(stream.snapshot())
    for each in (stream, ended):
        with pytest.raises(InputError, match="has ended"):
            each.feed({"samples": x["samples"], "pair": x["pair"]})
    stream.reset()
    assert stream.feed({"samples": x["samples"][:, :4], "pair": x["pair"][:, :1]}) is not None
    assert session.stream(held={"voice": voice}).finish()["means"].shape == (1, 0)


REFUSED: list[tuple[Any, str]] = [
    (lambda s, x: s.step(x["samples"]), "takes a mapping with samples, pair"),
    (lambda s, x: s.step({"samples": x["samples"][:, :4]}), "lacks pair"),
    (lambda s, x: s.step({**x, "noise": 1}), "step does not know noise: it takes samples, pair"),
    (lambda s, x: s.step({"samples": x["samples"][:, :3], "pair": x["pair"][:, 0]}), "exactly 4 items, got 3"),
    (lambda s, x: s.feed({"samples": x["samples"], "pair": x["pair"][:, :1]}), "samples runs ahead .* by 8 items"),
    (lambda s, x: s.hold({"speaker": np.ones(3)}), "no input speaker is held: there are voice"),
    (lambda s, x: s.hold({"voice": np.ones(4)}), r"voice of shape \[4\]"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_wrong_items_are_refused_and_the_stream_is_as_it_was(session: Session, call: Any, message: str) -> None:
    stream, x = session.stream(held={"voice": np.ones(3)}), data(3, batch=1)
    stream.feed({"samples": x["samples"][:, :4], "pair": x["pair"][:, :1]}, "none")
    before = stream.snapshot()
    with pytest.raises(InputError, match=message):
        call(stream, x)
    assert stream.snapshot() == before


def test_a_held_input_that_was_never_given_is_asked_for(session: Session) -> None:
    with pytest.raises(InputError, match=r"voice holds for the whole stream and was never given\.\n.*held=") as error:
        session.stream().step({"samples": np.ones(4), "pair": np.ones((1, 2))})
    assert error.value.hint


def test_a_step_with_items_left_over_is_refused(session: Session) -> None:
    stream = session.stream(held={"voice": np.ones(3)})
    stream.feed({"samples": np.ones(3, np.float32), "pair": np.empty((1, 0, 2))})
    with pytest.raises(InputError, match="exactly 4 items of 'samples'; the stream holds 3 already"):
        stream.step({"samples": np.ones(4), "pair": np.ones((1, 2))})


def test_rows_that_hold_different_left_overs_are_told_apart(session: Session) -> None:
    voice = {"voice": np.ones(3)}
    a, b = session.stream(held=voice), session.stream(held=voice)
    a.feed({"samples": np.ones(3, np.float32), "pair": np.empty((1, 0, 2))})
    both = type(a).join([a, b])
    with pytest.raises(InputError, match=r"different numbers of left-over items of 'samples': \[3, 0\]"):
        both.feed({"samples": np.ones((2, 4)), "pair": np.ones((2, 1, 2))})
    alone = both.split(0)
    np.testing.assert_array_equal(
        alone.feed({"samples": np.ones(1), "pair": np.ones((1, 1, 2))})["total"],
        a.feed({"samples": np.ones(1), "pair": np.ones((1, 1, 2))})["total"],
    )


def test_the_guard_rejects_samples_and_leaves_what_was_left_over(session: Session, tmp_path: Path) -> None:
    contract, model = two_tensor_model()
    path = tiny.save_bundle(tmp_path / "guarded", contract, model).path
    with edgemem.open(path, "onnxruntime", device="cpu", guard=True) as guarded:
        stream = guarded.stream(held={"voice": np.ones(3)})
        stream.feed({"samples": np.ones(6, np.float32), "pair": np.ones((1, 1, 2))}, "none")
        before = stream.snapshot()
        with pytest.raises(NonFiniteError, match="samples at position 1"):
            stream.feed({"samples": np.array([1, np.nan], np.float32), "pair": np.ones((1, 1, 2))})
        huge = np.full(6, 3e38, np.float32)
        with pytest.raises(NonFiniteError, match="became"):
            stream.feed({"samples": huge, "pair": np.ones((1, 2, 2))})
        assert stream.snapshot() == before
