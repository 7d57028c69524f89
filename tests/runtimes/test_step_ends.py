"""Single steps take a way of their own: with the guard on they take the general one, and both give the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.contract import Contract, Framing, InputSpec, OutputSpec, StateSpec, Stft
from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes import Session
from edgemem.runtimes.step_ends import StepEnds
from tests.runtimes import tiny

TAKES = 8
FRAMED = Contract(
    (InputSpec("audio", (), takes=TAKES, front_end=Framing(3)), InputSpec("gain", (), role="held")),
    (OutputSpec("loud", (), time_axis=None),),
    (StateSpec("0.loud.last", (1,)),),
    max_chunk=1,
    position="none",
)


def framed_model() -> Any:
    n = tiny.Nodes()
    total = n.ReduceSum("audio", n.const([1]), keepdims=1)
    n.Add(total, n.Mul("past.0.loud.last", n.const(np.float32(0.5))), out="present.0.loud.last")
    n.Mul(n.Squeeze("present.0.loud.last", n.const([1])), "gain", out="loud")
    return tiny.model_proto(FRAMED, n)


def spectral(stft: Stft, dtype: Any = "float32", time_axis: int = 1) -> tuple[Contract, Any]:
    """Frames multiplied with a state that doubles."""
    contract = Contract(
        (InputSpec("mix", stft.shape, dtype, time_axis=time_axis, front_end=stft),),
        (OutputSpec("enhanced", stft.shape, dtype, time_axis=time_axis, back_end=stft),),
        (StateSpec("0.gain.g", (1, 1, 1), dtype, initial=0.001),),
        max_chunk=1,
        position="none",
    )
    n = tiny.Nodes()
    n.Mul("mix", "past.0.gain.g", out="enhanced")
    n.Add("past.0.gain.g", "past.0.gain.g", out="present.0.gain.g")
    return contract, tiny.model_proto(contract, n)


MODELS = {
    "framed": lambda: (FRAMED, framed_model()),
    "hann": lambda: spectral(Stft(16, 8, "hann")),
    "frequencies first": lambda: spectral(Stft(32, 8, "sqrt_hann"), time_axis=2),
    "time last": lambda: spectral(Stft(16, 8, "hamming"), time_axis=3),
    "no overlap": lambda: spectral(Stft(8, 8, "rectangular")),
    "half": lambda: spectral(Stft(16, 8, "hann"), "float16"),
}


@pytest.fixture(params=MODELS)
def sessions(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Session, Session]]:
    """The same model without and with the guard."""
    contract, model = MODELS[request.param]()
    path = tiny.save_bundle(tmp_path / "bundle", contract, model).path
    options: dict[str, Any] = {"runtime": "onnxruntime", "device": "cpu", "threads": 1}
    with edgemem.open(path, **options) as plain, edgemem.open(path, guard=True, **options) as guarded:
        yield plain, guarded


def steps(stream: Any, samples: np.ndarray) -> np.ndarray:
    parts = samples.reshape(len(samples), -1, TAKES)
    return np.stack([stream.step(parts[:, i]).copy() for i in range(parts.shape[1])], axis=1)


def test_steps_and_feeds_are_those_of_the_general_way_bit_for_bit(sessions: tuple[Session, Session]) -> None:
    samples = np.random.default_rng(0).normal(size=(2, 6 * TAKES)).astype(np.float32)
    found = []
    for session, is_fast in zip(sessions, (True, False), strict=True):
        held = {"gain": [2.0, 3.0]} if session.contract.held else None
        stream = session.stream(2, held=held)
        assert (stream._ends is not None) is is_fast
        made = [steps(stream, samples[:, : 2 * TAKES])]
        made.append(stream.feed(samples[:, 2 * TAKES : 4 * TAKES + 3], "all"))  # leaves three samples
        with pytest.raises(InputError, match="holds 3 already"):
            stream.step(samples[:, :TAKES])
        made.append(stream.feed(samples[:, 4 * TAKES + 3 : 5 * TAKES], "all"))
        twin = session.stream(2)
        twin.restore(stream.snapshot())
        made += [steps(each, samples[:, 5 * TAKES :]) for each in (stream, twin, stream.fork([1]).fork([0, 0]))]
        stream.reset([0])
        made += [steps(stream, samples[:, :TAKES]), stream.finish()]
        found.append(made)
    for fast, general in zip(*found, strict=True):
        np.testing.assert_array_equal(fast, general)


def test_a_bad_sample_is_refused_and_changes_nothing(sessions: tuple[Session, Session]) -> None:
    session = sessions[0]
    samples = np.random.default_rng(1).normal(size=(1, 3 * TAKES)).astype(np.float32)
    held = {"gain": 1.0} if session.contract.held else None
    stream, undisturbed = session.stream(held=held), session.stream(held=held)
    steps(stream, samples[:, :TAKES])
    steps(undisturbed, samples[:, :TAKES])
    for bad in (np.nan, np.inf):
        wrong = samples[0, :TAKES].copy()
        wrong[2] = bad
        with pytest.raises(NonFiniteError, match=f"position 1 .* holds {bad}"):
            stream.step(wrong)
    with pytest.raises(InputError, match="exactly 8 items"):
        stream.step(samples[0])
    np.testing.assert_array_equal(steps(stream, samples[:, TAKES:]), steps(undisturbed, samples[:, TAKES:]))


def test_a_step_takes_lists_and_other_dtypes_as_ever(sessions: tuple[Session, Session]) -> None:
    held = {"gain": 1.0} if sessions[0].contract.held else None
    samples = np.arange(TAKES)
    wanted = sessions[0].stream(held=held).step(samples.astype(np.float32)).copy()
    for same in (samples, samples.tolist(), samples.astype(np.float64)[np.newaxis]):
        np.testing.assert_array_equal(sessions[0].stream(held=held).step(same), wanted)


def test_a_stream_waits_for_an_input_that_holds(tmp_path: Path) -> None:
    path = tiny.save_bundle(tmp_path / "bundle", FRAMED, framed_model()).path
    with edgemem.open(path, "onnxruntime", device="cpu") as session:
        stream = session.stream()
        with pytest.raises(InputError, match="gain holds for the whole stream and was never given"):
            stream.step(np.ones(TAKES))
        stream.hold({"gain": 2.0})
        assert stream.step(np.ones(TAKES)).tolist() == [16.0]
        stream.finish()
        with pytest.raises(InputError, match="the stream has ended"):
            stream.step(np.ones(TAKES))
        stream.reset()
        assert stream.step(np.ones(TAKES)).tolist() == [16.0]


def test_a_step_allocates_no_arrays_of_its_own(sessions: tuple[Session, Session]) -> None:
    held = {"gain": 1.0} if sessions[0].contract.held else None
    stream = sessions[0].stream(held=held)
    ends = stream._ends
    assert isinstance(ends, StepEnds)
    first, second = stream.step(np.ones(TAKES)), stream.step(np.ones(TAKES))
    assert np.shares_memory(first, second)
    assert not first.flags.writeable
