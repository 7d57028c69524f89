"""The largest outputs of a step, where the engine does not pick them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes import Session
from edgemem.runtimes.top import largest
from tests.runtimes import tiny


@given(
    values=arrays.arrays(
        st.sampled_from([np.float32, np.float16]),
        st.tuples(st.integers(1, 3), st.integers(1, 9)),
        elements=st.sampled_from([-np.inf, -1.5, 0.0, 0.5, 0.5, 2.0]),
    ),
    data=st.data(),
)
def test_they_are_those_of_a_stable_sort(values: np.ndarray, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, values.shape[1]))
    found, indices = largest(values, k)
    np.testing.assert_array_equal(indices, np.argsort(-values, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(found, np.take_along_axis(values, indices, 1))
    assert (found.dtype, indices.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_nan_comes_first_so_that_it_is_seen(k: int) -> None:
    found, indices = largest(np.array([[1.0, np.inf, np.nan, 3.0]], np.float32), k)
    np.testing.assert_array_equal(found, np.array([[np.nan, np.inf, 3.0, 1.0]], np.float32)[:, :k])
    assert indices.tolist() == [[2, 1, 3, 0][:k]]


@pytest.mark.parametrize("k", [1, 3])
def test_a_step_that_gives_the_largest_alone_is_a_step(session: Session, k: int) -> None:
    stream, other = session.stream(2), session.stream(2)
    for i in range(9):
        values, indices = stream.step_top([i, 10 - i], k)
        logits = other.step([i, 10 - i])
        np.testing.assert_array_equal(values, -np.sort(-logits, axis=1)[:, :k])
        np.testing.assert_array_equal(np.take_along_axis(logits, indices, 1), values)
    assert stream.snapshot() == other.snapshot()


def test_what_cannot_be_picked_is_refused_and_the_stream_is_as_it_was(session: Session, guarded: Session) -> None:
    stream = session.stream()
    before = stream.snapshot()
    for token, k in ((1, 0), (1, tiny.WIDTH + 3), (tiny.VOCAB, 1)):
        with pytest.raises(InputError):
            stream.step_top(token, k)
    assert stream.snapshot() == before
    with pytest.raises(NonFiniteError):
        guarded.stream().step_top([np.nan, 1.0])
