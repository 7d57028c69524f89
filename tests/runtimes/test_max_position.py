"""A model that keeps its whole past up to a length computes something else beyond it: streams end there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import edgemem
from edgemem.bundle import open_bundle
from edgemem.errors import InputError
from edgemem.runtimes import Session
from tests.runtimes import tiny

LIMIT = 9
CONTRACT = replace(tiny.TOKENS, max_position=LIMIT)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "guarded"])
def limited(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    path = tmp_path_factory.mktemp("limited") / "bundle"
    tiny.save_bundle(path, CONTRACT, tiny.tokens_model(CONTRACT))
    with edgemem.open(path, threads=1, device="cpu", guard=request.param) as session:
        yield session


def test_the_limit_travels_in_the_bundle(limited: Session) -> None:
    assert open_bundle(limited.bundle.path).contract.max_position == LIMIT


def test_up_to_the_limit_a_stream_is_as_any_other(limited: Session) -> None:
    history = [3, 1, 4, 1, 5, 9, 2, 6, 5]
    stepped = limited.stream()
    outputs = [stepped.step(token)[0].copy() for token in history]
    np.testing.assert_allclose(outputs, tiny.tokens_outputs(history), atol=2e-5, rtol=1e-5)
    fed = limited.stream().feed(history, outputs="all")
    np.testing.assert_allclose(fed[0], outputs, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "call",
    [lambda s: s.step(1), lambda s: s.step([1]), lambda s: s.step_top(1, 2), lambda s: s.feed([1, 2, 3])],
    ids=["step", "step of an array", "step_top", "feed"],
)
def test_a_call_that_would_pass_the_limit_is_refused_and_changes_nothing(limited: Session, call) -> None:  # type: ignore[no-untyped-def]
    stream = limited.stream()
    stream.feed([1] * LIMIT)
    before = stream.state()
    with pytest.raises(InputError, match=f"at position {LIMIT}.* pass the {LIMIT} .*exported for"):
        call(stream)
    assert stream.position == LIMIT
    assert all(np.array_equal(value, before[name]) for name, value in stream.state().items())
    stream.reset()
    call(stream)


def test_a_chunk_is_refused_as_a_whole(limited: Session) -> None:
    stream = limited.stream()
    stream.feed([1] * 5)
    with pytest.raises(InputError, match="at position 5: 5 more"):
        stream.feed([1] * 5)
    assert stream.position == 5


def test_the_farthest_stream_of_a_batch_decides(limited: Session) -> None:
    stream = limited.stream(2)
    stream.feed(np.ones((2, 8), np.int64))
    stream.reset([0])
    stream.step([1, 1])
    with pytest.raises(InputError, match=f"at position {LIMIT}"):
        stream.step([1, 1])


def test_a_state_from_beyond_the_limit_is_refused(limited: Session) -> None:
    stream = limited.stream()
    with pytest.raises(InputError, match=f"end at {LIMIT}, got 10"):
        stream.load_state(stream.state(), 10)
