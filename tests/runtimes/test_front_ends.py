"""Framing with context, and Fourier frames with overlap-add: declared in the contract, computed by the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.contract import Contract, Framing, InputSpec, OutputSpec, OverlapAdd, StateSpec, Stft
from edgemem.runtimes import Session
from tests.runtimes import tiny

CONTEXT, TAKES = 3, 4


def framed_session(folder: Path, max_chunk: int) -> Session:
    """A moving sum over the last ``CONTEXT + 1`` samples, which the graph computes without padding; and a count."""
    contract = Contract(
        (InputSpec("audio", (), takes=TAKES, front_end=Framing(CONTEXT)),),
        (OutputSpec("sums", (), gives=TAKES),),
        (StateSpec("0.count.n", ()),),
        max_chunk=max_chunk,
        position="none",
    )
    n = tiny.Nodes()
    kernel = n.const(np.ones((1, 1, CONTEXT + 1), np.float32))
    n.Squeeze(n.Conv(n.Unsqueeze("audio", n.const([1])), kernel), n.const([1]), out="sums")
    n.Add("past.0.count.n", n.ReduceSum("audio", n.const([1]), keepdims=0), out="present.0.count.n")
    bundle = tiny.save_bundle(folder / f"framed{max_chunk}", contract, tiny.model_proto(contract, n))
    return edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1)


@pytest.mark.parametrize("max_chunk", [1, 5])
@pytest.mark.parametrize("cuts", [[20, 20, 20], [1] * 60, [7, 50, 3]])
def test_a_model_without_padding_sees_the_samples_before_the_chunk(
    tmp_path: Path, max_chunk: int, cuts: list[int]
) -> None:
    x = np.random.default_rng(0).normal(size=(2, 60)).astype(np.float32)
    padded = np.concatenate([np.zeros((2, CONTEXT), np.float32), x], axis=1)
    wanted = np.stack([padded[:, i : i + CONTEXT + 1].sum(1) for i in range(60)], axis=1)
    with framed_session(tmp_path, max_chunk) as session:
        stream, found, done = session.stream(2), [], 0
        for cut in cuts:
            found.append(stream.feed(x[:, done : done + cut], "all"))
            done += cut
        np.testing.assert_allclose(np.concatenate(found, 1), wanted, atol=1e-5)


def test_context_lives_in_snapshots_and_is_forgotten_by_a_reset(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=40).astype(np.float32)
    with framed_session(tmp_path, 5) as session:
        stream, other = session.stream(), session.stream()
        first = stream.feed(x[:20], "all")
        other.restore(stream.snapshot())
        np.testing.assert_array_equal(other.feed(x[20:], "all"), stream.feed(x[20:], "all"))
        stream.reset()
        np.testing.assert_array_equal(stream.feed(x[:20], "all"), first)


def spectral_session(folder: Path, stft: Stft, max_chunk: int) -> Session:
    """Frames come in as ``[B, F, T, 2]`` and go out multiplied with a state that is 1: the samples, later."""
    frequencies = stft.shape[0]
    contract = Contract(
        (InputSpec("mix", stft.shape, time_axis=2, front_end=stft),),
        (OutputSpec("enh", stft.shape, time_axis=2, back_end=stft),),
        (StateSpec("0.gain.g", (frequencies,), initial=1.0),),
        max_chunk=max_chunk,
        position="none",
    )
    n = tiny.Nodes()
    n.Mul("mix", n.Unsqueeze("past.0.gain.g", n.const([2, 3])), out="enh")
    n.Add("past.0.gain.g", n.const(np.zeros(frequencies, np.float32)), out="present.0.gain.g")
    name = f"spectral-{stft.n_fft}-{stft.hop}-{stft.window}-{max_chunk}"
    bundle = tiny.save_bundle(folder / name, contract, tiny.model_proto(contract, n))
    return edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1)


@pytest.mark.parametrize(
    "stft",
    [
        Stft(16, 4, "hann"),
        Stft(16, 8, "sqrt_hann"),
        Stft(16, 16, "rectangular"),
        Stft(16, 4, "hamming"),
        Stft(16, 8, "vorbis"),
    ],
)
@pytest.mark.parametrize("max_chunk", [1, 6])
def test_frames_that_are_not_changed_give_the_samples_back(tmp_path: Path, stft: Stft, max_chunk: int) -> None:
    x = np.random.default_rng(2).normal(size=(2, 70)).astype(np.float32)
    delay = stft.n_fft - stft.hop
    with spectral_session(tmp_path, stft, max_chunk) as session:
        stream = session.stream(2)
        found = [stream.feed(x[:, :5], "all"), stream.feed(x[:, 5:], "all"), stream.finish()]
        whole = np.concatenate(found, 1)
        assert whole.shape[1] >= delay + 70
        np.testing.assert_allclose(whole[:, delay : delay + 70], x, atol=1e-5)
        np.testing.assert_allclose(whole[:, delay + 70 :], 0, atol=1e-5)


def test_frames_are_those_of_the_formula(tmp_path: Path) -> None:
    """The graph's own view: an output without overlap-add gives the frames it was given."""
    stft = Stft(8, 4, "hann")
    contract = Contract(
        (InputSpec("mix", stft.shape, front_end=stft),),
        (OutputSpec("frames", stft.shape),),
        (StateSpec("0.gain.g", (1,), initial=1.0),),
        max_chunk=4,
        position="none",
    )
    n = tiny.Nodes()
    n.Mul("mix", n.Unsqueeze("past.0.gain.g", n.const([1, 2])), out="frames")
    n.Identity("past.0.gain.g", out="present.0.gain.g")
    bundle = tiny.save_bundle(tmp_path / "frames", contract, tiny.model_proto(contract, n))
    x = np.random.default_rng(3).normal(size=12).astype(np.float64)
    with edgemem.open(bundle.path, "onnxruntime", device="cpu") as session:
        found = session.stream().feed(x, "all")[0]
    window = [0.5 - 0.5 * np.cos(2 * np.pi * i / 8) for i in range(8)]
    known = [0.0] * 4 + list(x)
    for m in range(3):
        for f in range(5):
            wanted = sum(window[i] * known[4 * m + i] * np.exp(-2j * np.pi * f * i / 8) for i in range(8))
            np.testing.assert_allclose(found[m, f], [wanted.real, wanted.imag], atol=1e-5)


def test_only_the_last_samples_are_returned_where_they_are_asked_for(tmp_path: Path) -> None:
    x: Any = np.random.default_rng(4).normal(size=64).astype(np.float32)
    with spectral_session(tmp_path, Stft(16, 4), 6) as session:
        every = session.stream().feed(x, "all")
        np.testing.assert_array_equal(session.stream().feed(x), every[:, -4:])
        assert session.stream().feed(x[:3]) is None
        stepped = session.stream()
        np.testing.assert_allclose(
            np.concatenate([stepped.step(x[i : i + 4]).copy() for i in range(0, 64, 4)], 1), every, atol=1e-6
        )


@pytest.mark.parametrize("max_chunk", [1, 3])
def test_frames_of_samples_are_added_where_they_overlap(tmp_path: Path, max_chunk: int) -> None:
    frame, hop = 6, 2
    contract = Contract(
        (InputSpec("x", (frame,)),),
        (OutputSpec("y", (frame,), back_end=OverlapAdd(frame, hop)),),
        (StateSpec("0.gain.g", (frame,), initial=1.0),),
        max_chunk=max_chunk,
        position="none",
    )
    n = tiny.Nodes()
    n.Mul("x", n.Unsqueeze("past.0.gain.g", n.const([1])), out="y")
    n.Add("past.0.gain.g", n.const(np.zeros(frame, np.float32)), out="present.0.gain.g")
    bundle = tiny.save_bundle(tmp_path / "frames", contract, tiny.model_proto(contract, n))
    x = np.random.default_rng(2).normal(size=(2, 7, frame)).astype(np.float32)
    wanted = np.zeros((2, 7 * hop + frame - hop))
    for at in range(7):
        wanted[:, at * hop : at * hop + frame] += x[:, at]
    with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
        stream = session.stream(2)
        got = np.concatenate([stream.feed(x[:, :3], "all"), stream.feed(x[:, 3:], "all"), stream.finish()], axis=1)
    np.testing.assert_allclose(got, wanted, atol=1e-6)
