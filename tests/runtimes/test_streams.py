"""Every way of feeding a stream gives what the formula says, from any position, in any batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import EdgememError, InputError
from edgemem.runtimes import Session, Stream
from edgemem.runtimes.results import Results
from tests.runtimes import tiny

TOLERANCE = 2e-5  # float32 sums of a dozen values of size 10
tokens = st.integers(0, tiny.VOCAB - 1)


@pytest.fixture(scope="module", params=tiny.KINDS, ids=lambda kind: kind.name)
def any_session(request: pytest.FixtureRequest, folder: Path) -> Iterator[Session]:
    bundle = tiny.save_bundle(folder / request.param.name, tiny.TOKENS, tiny.tokens_model(), request.param.graphs)
    with edgemem.open(bundle.path, threads=1, device="cpu") as session:
        yield session


def stepped(stream: Stream, history: list[int]) -> np.ndarray:
    return np.stack([stream.step(token)[0].copy() for token in history])


@given(history=st.lists(tokens, min_size=1, max_size=30), data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_chunking_equals_stepping_equals_the_formula(
    any_session: Session, history: list[int], data: st.DataObject
) -> None:
    wanted = tiny.tokens_outputs(history)
    np.testing.assert_allclose(stepped(any_session.stream(), history), wanted, atol=TOLERANCE, rtol=1e-5)
    stream, parts, done = any_session.stream(), [], 0
    while done < len(history):
        length = data.draw(st.integers(1, len(history) - done))
        parts.append(stream.feed(history[done : done + length], outputs="all")[0])
        done += length
        for name, value in tiny.tokens_state(history[:done]).items():
            np.testing.assert_allclose(stream.state()[name][0], value, rtol=1e-6, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(np.concatenate(parts), wanted, atol=TOLERANCE, rtol=1e-5)
    assert stream.position == len(history)


@pytest.mark.parametrize("length", [tiny.WINDOW - 1, tiny.WINDOW, tiny.WINDOW + 1, 2 * tiny.WINDOW + 1, 40])
def test_the_ring_wraps_where_it_should(any_session: Session, length: int) -> None:
    history = [(7 * i + 3) % tiny.VOCAB for i in range(length)]
    stream = any_session.stream()
    stream.feed(history[:-1], outputs="none") if length > 1 else None
    np.testing.assert_allclose(stream.step(history[-1])[0], tiny.tokens_outputs(history)[-1], atol=TOLERANCE, rtol=1e-5)
    for name, value in tiny.tokens_state(history).items():
        np.testing.assert_allclose(stream.state()[name][0], value, rtol=1e-6, atol=1e-6, err_msg=name)


@given(
    pasts=st.lists(st.lists(tokens, max_size=15), min_size=1, max_size=4),
    length=st.integers(1, 12),
    chunked=st.booleans(),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_every_row_of_a_batch_goes_on_from_its_own_position(
    any_session: Session, pasts: list[list[int]], length: int, chunked: bool, data: st.DataObject
) -> None:
    rows = [data.draw(st.lists(tokens, min_size=length, max_size=length)) for _ in pasts]
    stream = any_session.stream(batch=len(pasts))
    stream.load_state(tiny.stacked([tiny.tokens_state(past) for past in pasts]), [len(past) for past in pasts])
    if chunked:
        got = stream.feed(np.array(rows), outputs="all")
        assert got is not None
    else:
        got = np.stack([stream.step(column).copy() for column in np.array(rows).T], axis=1)
    for past, row, values in zip(pasts, rows, got, strict=True):
        wanted = tiny.tokens_outputs(past + row)[len(past) :]
        np.testing.assert_allclose(values, wanted, atol=TOLERANCE, rtol=1e-5)
    assert stream.positions.tolist() == [len(past) + length for past in pasts]
    for name, value in tiny.stacked(
        [tiny.tokens_state(past + row) for past, row in zip(pasts, rows, strict=True)]
    ).items():
        np.testing.assert_allclose(stream.state()[name], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_last_is_the_last_of_all_and_none_is_nothing(any_session: Session) -> None:
    history = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    a, b, c = (any_session.stream() for _ in range(3))
    every, last = a.feed(history, "all"), b.feed(history, "last")
    assert every is not None
    assert last is not None
    assert every.shape == (1, 9, tiny.WIDTH + 2)
    np.testing.assert_allclose(every[:, -1], last, rtol=1e-6)
    assert c.feed(history, "none") is None
    np.testing.assert_array_equal(b.step(3), c.step(3))


def test_a_model_without_output_indices_gives_the_same(folder: Path, features_bundle: Bundle) -> None:
    x = np.random.default_rng(0).normal(size=(2, 13, 2)).astype(np.float32)
    wanted = (1 / x.astype(np.float64)).cumsum(1) / np.arange(1, 14)[:, np.newaxis]
    with edgemem.open(features_bundle.path, threads=1, device="cpu") as session:
        stream = session.stream(2)
        np.testing.assert_allclose(stream.feed(x[:, :7], "all"), wanted[:, :7], rtol=2e-5)
        np.testing.assert_allclose(stream.feed(x[:, 7:12]), wanted[:, 11], rtol=2e-5)
        np.testing.assert_allclose(stream.step(x[:, 12]), wanted[:, 12], rtol=2e-5)
        assert stream.state()["position"].tolist() == stream.positions.tolist() == [13, 13]


def test_bfloat16_states_are_kept_as_bits_and_values_come_as_float32(folder: Path) -> None:
    bundle = tiny.save_bundle(folder / "bfloat16", tiny.BFLOAT16, tiny.bfloat16_model())
    x = np.random.default_rng(0).integers(0, 4, size=(10, 2)).astype(np.float32)
    with edgemem.open(bundle.path, threads=1, device="cpu", guard=True) as session:
        stream = session.stream()
        np.testing.assert_array_equal(stream.feed(x, "all")[0], 1.5 + x.cumsum(0))
        assert stream.state()["0.sum.s"].dtype == np.uint16
        other = session.stream()
        other.restore(stream.snapshot())
        np.testing.assert_array_equal(stream.step([1, 2]), other.step([1, 2]))


@given(history=st.lists(tokens, min_size=2, max_size=25), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_growing_cache_gives_what_the_formula_says(
    growing_session: Session, history: list[int], data: st.DataObject
) -> None:
    stream, parts, done = growing_session.stream(), [], 0
    while done < len(history):
        length = data.draw(st.integers(1, len(history) - done))
        if length == 1:
            parts.append(stream.step(history[done]).copy())
        else:
            parts.append(stream.feed(history[done : done + length], "all")[0])
        done += length
    np.testing.assert_allclose(np.concatenate(parts), tiny.growing_outputs(history), atol=1e-4, rtol=1e-5)
    assert stream.state()["0.full.k"].shape == (1, 1, len(history), tiny.WIDTH)
    fork, other = stream.fork(), growing_session.stream()
    other.restore(stream.snapshot())
    wanted = tiny.growing_outputs([*history, 3])[-1]
    for copy in (fork, other, stream):
        np.testing.assert_allclose(copy.step(3)[0], wanted, atol=1e-4, rtol=1e-5)
    stream.reset()
    np.testing.assert_allclose(stream.step(5)[0], tiny.growing_outputs([5])[0], rtol=1e-5)


@pytest.fixture(scope="module")
def growing_session(growing_bundle: Bundle) -> Iterator[Session]:
    with edgemem.open(growing_bundle.path, threads=1, device="cpu") as session:
        yield session


def test_rows_of_a_growing_cache_advance_together(growing_session: Session) -> None:
    stream = growing_session.stream(2)
    stream.feed([[1, 2], [3, 4]])
    with pytest.raises(InputError, match="cannot be reset for some"):
        stream.reset(1)
    with pytest.raises(InputError, match="every stream of the batch must be at one position"):
        stream.load_state(stream.state(), [2, 3])
    assert stream.fork([1, 0, 1]).state()["0.full.k"].shape[0] == 3


# Reset, fork, close.


def test_a_reset_row_starts_again_and_the_others_go_on(any_session: Session) -> None:
    stream = any_session.stream(3)
    stream.feed(np.tile([1, 2, 3, 4, 5, 6, 7], (3, 1)))
    stream.reset([1])
    assert stream.positions.tolist() == [7, 0, 7]
    got = stream.step([8, 8, 8])
    np.testing.assert_allclose(got[1], tiny.tokens_outputs([8])[0], atol=TOLERANCE)
    np.testing.assert_allclose(got[2], tiny.tokens_outputs([1, 2, 3, 4, 5, 6, 7, 8])[-1], atol=TOLERANCE)
    stream.reset()
    np.testing.assert_array_equal(stream.step([8, 8, 8]), any_session.stream(3).step([8, 8, 8]))


@pytest.mark.parametrize("steps", [0, 1, 2, 7])
def test_a_fork_and_its_origin_go_their_own_ways(any_session: Session, steps: int) -> None:
    history = [(3 * i) % tiny.VOCAB for i in range(steps)]
    stream = any_session.stream()
    for token in history:
        stream.step(token)
    fork = stream.fork()
    a, b = [1, 2, 3, 4, 5], [6, 7, 8, 9, 10]
    for left, right in zip(a, b, strict=True):
        got_left, got_right = stream.step(left), fork.step(right)
    np.testing.assert_allclose(got_left[0], tiny.tokens_outputs(history + a)[-1], atol=TOLERANCE)
    np.testing.assert_allclose(got_right[0], tiny.tokens_outputs(history + b)[-1], atol=TOLERANCE)


def test_a_fork_takes_rows_in_the_order_asked_for(any_session: Session) -> None:
    stream = any_session.stream(3)
    stream.feed([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    stream.reset(2)
    stream.step([1, 1, 1])
    fork = stream.fork([2, 0, 0, 1])
    assert fork.batch == 4
    assert fork.positions.tolist() == [1, 4, 4, 4]
    wanted = stream.step([5, 5, 5])[[2, 0, 0, 1]]
    np.testing.assert_allclose(fork.step([5, 5, 5, 5]), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("rows", [[3], [-1], 3, ["a"], [0.5]])
def test_rows_that_do_not_exist_are_refused(any_session: Session, rows: list[object]) -> None:
    stream = any_session.stream(3)
    with pytest.raises(InputError, match="row"):
        stream.reset(rows)
    with pytest.raises(InputError, match="row"):
        stream.fork(rows)


def test_an_output_holds_until_the_next_call_and_cannot_be_written(session: Session) -> None:
    stream = session.stream()
    first = stream.step(1)
    kept = first.copy()
    with pytest.raises(ValueError, match="read-only"):
        first[...] = 0
    assert not np.array_equal(stream.step(2), kept)
    fed = stream.feed([3])
    assert fed is not None
    again = fed.copy()
    stream.step(4)
    np.testing.assert_array_equal(fed, again)


def test_a_closed_session_runs_nothing_more(tokens_bundle: Bundle) -> None:
    with edgemem.open(tokens_bundle.path, threads=1, device="cpu") as session:
        stream = session.stream()
        stream.step(1)
    for call in (lambda: stream.step(1), lambda: stream.feed([1, 2, 3]), session.stream, stream.fork):
        with pytest.raises(EdgememError, match="closed"):
            call()


def test_streams_of_one_session_run_in_threads(session: Session) -> None:
    from concurrent.futures import ThreadPoolExecutor

    histories = [[(i * k + k) % tiny.VOCAB for i in range(200)] for k in range(1, 5)]
    with ThreadPoolExecutor(4) as pool:
        for history, got in zip(histories, pool.map(lambda h: stepped(session.stream(), h), histories), strict=True):
            np.testing.assert_allclose(got, tiny.tokens_outputs(history), atol=TOLERANCE, rtol=1e-5)


# Injected state.


def test_a_stream_goes_on_from_an_injected_position(session: Session) -> None:
    """A million steps on, the ring's slots are those of the position modulo its length."""
    million = 1_000_003
    history = [(5 * i) % tiny.VOCAB for i in range(12)]
    near, far = session.stream(), session.stream()
    near.feed(history)
    state = near.state()
    for name in ("0.window.k", "0.window.v", "1.window.k"):
        state[name] = np.roll(state[name], million - 12, axis=2)  # slot p mod W becomes slot (p + shift) mod W
    far.load_state(state, million)
    for token in (1, 2, 3, 4, 5, 6, 7):
        np.testing.assert_allclose(near.step(token), far.step(token), rtol=1e-6)
    assert far.position == million + 7


@pytest.mark.parametrize(
    ("change", "positions", "message"),
    [
        (lambda s: s.pop("0.decayed.m"), 0, r"lacks \['0.decayed.m'\]"),
        (lambda s: s.update(extra=np.zeros(1)), 0, r"\['extra'\] unknown"),
        (
            lambda s: s.update({"0.decayed.m": np.zeros((1, 4), np.float32)}),
            0,
            r"shape \[1, 4\], wanted float32 \[1, 3\]",
        ),
        (lambda s: s.update({"0.decayed.m": np.zeros((1, 3))}), 0, "dtype float64"),
        (lambda s: None, -1, "from 0 to 4611686018427387904, got -1"),
        (lambda s: None, 1.5, "dtype float64"),
        (lambda s: None, [1, 2], r"shape \[2\], wanted integers \[1\]"),
    ],
)
def test_a_wrong_state_is_refused_and_the_stream_is_as_it_was(
    session: Session, change: object, positions: object, message: str
) -> None:
    stream = session.stream()
    stream.feed([1, 2, 3])
    before, state = stream.snapshot(), stream.state()
    change(state)  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        stream.load_state(state, positions)
    assert stream.snapshot() == before


def test_outputs_for_which_there_is_no_memory_are_refused(tokens_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="the outputs 'logits' of 4,611,686,018,427,387,904 steps"):
        Results(tokens_bundle.contract, 1, 1 << 62, "all")


def test_streams_for_which_there_is_no_memory_are_refused(session: Session) -> None:
    for batch in (2**40, 2**62):
        with pytest.raises(
            EdgememError, match=r"the streams need [\d,]+ bytes, more than this machine gives"
        ) as caught:
            session.stream(batch)
        assert "smaller batch" in (caught.value.hint or "")


@pytest.mark.parametrize("position", [-1, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("dtype", [None, np.uint64])
def test_a_position_that_int64_cannot_count_on_from_is_refused(
    session: Session, position: int, dtype: type[np.uint64] | None
) -> None:
    stream = session.stream()
    given = np.array([position], np.uint64) if dtype and position > 0 else position
    with pytest.raises(InputError, match=f"positions must be from 0 to 4611686018427387904, got {position}"):
        stream.load_state(stream.state(), given)
    assert stream.position == 0
    stream.load_state(stream.state(), 2**62)
    stream.step(1)
    assert stream.position == 2**62 + 1


def test_a_position_carried_as_a_state_must_agree(features_bundle: Bundle) -> None:
    with edgemem.open(features_bundle.path, threads=1, device="cpu") as session:
        stream = session.stream()
        stream.feed(np.ones((4, 2)))
        with pytest.raises(InputError, match=r"'position' is \[4\], positions are \[5\]"):
            stream.load_state(stream.state(), 5)
