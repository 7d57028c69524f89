"""The guard names the step and the tensor that are not finite, and the stream stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import NonFiniteError
from edgemem.runtimes import Session
from tests.runtimes import tiny

GOOD = np.ones((1, 2), np.float32)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_it_names_the_position_of_a_feature_that_is_not_finite(guarded: Session, bad: float) -> None:
    stream = guarded.stream()
    stream.feed(np.ones((3, 2)))
    before = stream.snapshot()
    with pytest.raises(NonFiniteError, match=rf"features at position 3 \(stream 0\) holds {bad}"):
        stream.step([1.0, bad])
    chunk = np.ones((17, 2))
    chunk[12, 1] = bad
    with pytest.raises(NonFiniteError, match="features at position 15"):
        stream.feed(chunk)
    assert stream.snapshot() == before
    np.testing.assert_allclose(stream.step([1, 1]), 1)


def test_it_names_the_output_and_the_step_that_became_infinite(guarded: Session) -> None:
    stream = guarded.stream(2)
    stream.feed(np.ones((2, 3, 2)))
    before = stream.snapshot()
    with pytest.raises(NonFiniteError, match=r"output 'predictions' became inf at position 3 \(stream 1\)"):
        stream.step([[1, 1], [1, 0]])
    chunk = np.ones((2, 4, 2))
    chunk[1, 2, 0] = 0
    with pytest.raises(NonFiniteError, match=r"output 'predictions' became inf at position 5 \(stream 1\)"):
        stream.feed(chunk, "all")
    assert stream.snapshot() == before


def test_a_failure_in_a_late_chunk_takes_back_the_earlier_ones(guarded: Session) -> None:
    stream = guarded.stream()
    stream.step([2, 2])
    before = stream.snapshot()
    chunk = np.ones((23, 2))
    chunk[21, 0] = 0
    with pytest.raises(NonFiniteError, match="predictions"):
        stream.feed(chunk)
    assert stream.snapshot() == before


def test_it_names_the_state(tokens_bundle: Bundle) -> None:
    with edgemem.open(tokens_bundle.path, threads=1, device="cpu", guard=True) as session:
        stream = session.stream()
        stream.feed([1, 2, 3])
        state, before = stream.state(), stream.snapshot()
        state["0.window.v"][0, 1, 2, 0] = np.nan
        with pytest.raises(NonFiniteError, match=r"state '0.window.v' to load holds .* at \[0, 1, 2, 0\]"):
            stream.load_state(state, 3)
        assert stream.snapshot() == before


def test_it_names_a_state_that_overflows_where_the_output_does_not(folder: Path) -> None:
    bundle = tiny.save_bundle(folder / "overflow", tiny.OVERFLOW, tiny.overflow_model())
    with edgemem.open(bundle.path, threads=1, device="cpu", guard=True) as session:
        stream = session.stream()
        stream.step([1.0])
        before = stream.snapshot()
        with pytest.raises(NonFiniteError, match=r"state '0.ring.k' became inf at position 1 \(stream 0\)"):
            stream.step([1e30])
        with pytest.raises(NonFiniteError, match=r"state '0.ring.k' became inf at position 3"):
            stream.feed([[1.0], [2.0], [1e30]])
        with pytest.raises(NonFiniteError, match=r"state '0.total.s' became inf at positions 1 to 2"):
            stream.feed([[3e18], [3e18]])
        assert stream.snapshot() == before


def test_without_it_nothing_is_checked(features_bundle: Bundle) -> None:
    with edgemem.open(features_bundle.path, threads=1, device="cpu") as session:
        stream = session.stream()
        assert np.isinf(stream.step([1, 0])).any()
        assert stream.position == 1


def test_it_does_not_change_results(guarded: Session, features_bundle: Bundle) -> None:
    x = np.random.default_rng(3).normal(size=(40, 2))
    with edgemem.open(features_bundle.path, threads=1, device="cpu") as session:
        np.testing.assert_array_equal(session.stream().feed(x, "all"), guarded.stream().feed(x, "all"))
