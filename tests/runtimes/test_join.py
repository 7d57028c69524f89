"""Streams are joined into a batch and taken out of it again; each goes on as it would have alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import InputError
from edgemem.runtimes import Session, Stream
from tests.runtimes import tiny


@pytest.fixture(scope="module", params=["tokens", "sealed"])
def decoder(request: pytest.FixtureRequest, exported: Callable[[str], Bundle]) -> Iterator[Session]:
    """A decoder in float32, of many memories."""
    with edgemem.open(exported(request.param).path, "onnxruntime", device="cpu", threads=1) as session:
        yield session


def ids(steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 20, steps)


def warmed(session: Session, steps: int, seed: int) -> Stream:
    stream = session.stream()
    stream.feed(ids(steps, seed), "none")
    return stream


def test_joined_streams_step_bit_equal_to_running_alone(decoder: Session) -> None:
    alone = [warmed(decoder, steps, seed) for seed, steps in enumerate((3, 17, 40))]
    batch = Stream.join([stream.fork() for stream in alone])
    assert batch.positions.tolist() == [3, 17, 40]
    for step in range(25):
        tokens = [int(ids(25, 10 + row)[step]) for row in range(3)]
        together = batch.step(tokens)
        for row, stream in enumerate(alone):
            np.testing.assert_array_equal(together[row : row + 1], stream.step(tokens[row]))


def test_rows_moved_out_are_bit_equal_to_running_alone(decoder: Session) -> None:
    alone = [warmed(decoder, steps, seed) for seed, steps in enumerate((5, 5, 23))]
    batch = Stream.join(alone)
    moved = batch.split([2, 0])
    assert (moved.positions.tolist(), batch.positions.tolist()) == ([23, 5], [5])
    for token in (1, 4, 9):
        np.testing.assert_array_equal(batch.step(token), alone[1].step(token))
        together = moved.step([token, token])
        np.testing.assert_array_equal(together[:1], alone[2].step(token))
        np.testing.assert_array_equal(together[1:], alone[0].step(token))
    np.testing.assert_array_equal(batch.feed([1, 2, 3], "all"), alone[1].feed([1, 2, 3], "all"))
    assert batch.snapshot() == alone[1].snapshot()


def test_joining_batches_keeps_their_order_and_leaves_them_as_they_were(decoder: Session) -> None:
    first, second = Stream.join([warmed(decoder, 2, 0), warmed(decoder, 3, 1)]), warmed(decoder, 4, 2)
    before = first.snapshot(), second.snapshot()
    joined = Stream.join([second, first])
    assert joined.positions.tolist() == [4, 2, 3]
    joined.step([1, 2, 3])
    assert (first.snapshot(), second.snapshot()) == before


def test_growing_states_are_joined_at_one_position(growing_bundle: Bundle) -> None:
    with edgemem.open(growing_bundle.path, "onnxruntime", device="cpu") as session:
        alone = [session.stream(), session.stream()]
        for row, stream in enumerate(alone):
            stream.feed((np.arange(90) + row) % tiny.VOCAB, "none")
        batch = Stream.join(alone)
        wanted = np.concatenate([stream.step(3) for stream in alone])
        np.testing.assert_allclose(batch.step([3, 3]), wanted, rtol=1e-6)
        moved = batch.split(1)
        np.testing.assert_allclose(moved.step(2), alone[1].step(2), rtol=1e-6)
        with pytest.raises(InputError, match="at one position"):
            Stream.join([session.stream(), moved])


def test_what_cannot_be_joined_or_split_is_refused(decoder: Session, session: Session) -> None:
    stream = decoder.stream(3)
    for call, message in (
        (lambda: Stream.join([]), "1 or more"),
        (lambda: Stream.join([stream, session.stream()]), "of one session"),
        (lambda: stream.split([0, 1, 2]), "leaves some, got"),
        (lambda: stream.split([]), "leaves some"),
        (lambda: stream.split([1, 1]), "leaves some"),
        (lambda: stream.split(3), "rows run from 0 to 2"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    assert stream.batch == 3
