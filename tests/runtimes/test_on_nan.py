"""A row of data that is not finite never reaches the state: the stream stops, skips it, or holds the row before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.bundle import Bundle
from edgemem.contract import StateSpec
from edgemem.dtypes import BFLOAT16_NAN, encode_bfloat16
from edgemem.errors import EdgememError, InputError, NonFiniteError
from edgemem.runtimes import Session
from edgemem.runtimes.on_nan import step_check
from tests.runtimes import tiny
from tests.runtimes.test_rates import two_tensor_model
from tests.runtimes.trt.machine import machine

BAD = [np.nan, np.inf, -np.inf]


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    """A ring and a sum; the output is the row itself. Whole numbers are summed without rounding."""
    return tiny.save_bundle(folder / "on_nan", tiny.OVERFLOW, tiny.overflow_model())


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def session(request: pytest.FixtureRequest, bundle: Bundle) -> Iterator[Session]:
    """A session whose state is in host memory, and one whose state is on what stands in for a device."""
    if request.param == "onnxruntime":
        with edgemem.open(bundle.path, threads=1, device="cpu") as session:
            yield session
    else:
        with machine() as here, here.open(bundle) as session:
            yield session


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("batch", [1, 2])
def test_it_stops_by_default_before_anything_has_changed(session: Session, bad: float, batch: int) -> None:
    stream = session.stream(batch)
    stream.feed(np.ones((batch, 3, 1)))
    before = stream.snapshot()
    rows = np.ones((batch, 9, 1))
    rows[-1, 6] = bad
    with pytest.raises(NonFiniteError, match=rf"features at position 9 \(stream {batch - 1}\) holds {bad}"):
        stream.feed(rows)
    with pytest.raises(NonFiniteError, match=rf"features at position 3 \(stream {batch - 1}\) holds {bad}.*\n.*skip"):
        stream.step(rows[:, 6])
    assert stream.snapshot() == before


def test_a_number_that_is_too_large_for_the_graphs_dtype_counts_and_the_largest_does_not(session: Session) -> None:
    stream = session.stream()
    with pytest.raises(NonFiniteError, match="holds inf"), np.errstate(over="raise"):  # and numpy warns of nothing
        stream.step([1e39])
    stream.step([float(np.finfo(np.float32).max)])
    assert stream.position == 1


rows_of_a_batch = st.integers(1, 3).flatmap(
    lambda batch: st.lists(
        st.lists(st.sampled_from([1.0, 2.0, 3.0, *BAD]), min_size=batch, max_size=batch), min_size=1, max_size=14
    )
)


def filled(row: np.ndarray, policy: str) -> tuple[np.ndarray, np.ndarray]:
    """What is fed of a row ``[N]``, and its outputs ``[N]``: itself, or NaN where it is skipped."""
    out = row.copy()
    for i in np.flatnonzero(~np.isfinite(row)):
        out[i] = out[i - 1] if policy == "hold" and i else np.nan
    return out[np.isfinite(out)], out


@given(rows=rows_of_a_batch, policy=st.sampled_from(["skip", "hold"]), guard=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_row_goes_on_as_if_the_bad_ones_had_not_been_there(
    session: Session, rows: list[list[float]], policy: str, guard: bool, data: st.DataObject
) -> None:
    x = np.array(rows, np.float32).T[..., np.newaxis]  # [B, N, 1]
    session.guard = guard
    try:
        stream, parts, done = session.stream(len(x), on_nan=policy), [], 0  # type: ignore[arg-type]
    finally:
        session.guard = False
    while done < x.shape[1]:
        length = data.draw(st.integers(1, x.shape[1] - done))
        part = x[:, done : done + length]
        wanted_skips = [filled(row, policy)[1][done : done + length] for row in x[..., 0]]
        parts.append(stream.step(part[:, 0])[:, np.newaxis].copy() if length == 1 else stream.feed(part, "all"))
        skipped = np.isnan(wanted_skips)
        np.testing.assert_array_equal(np.zeros_like(skipped) if stream.skipped is None else stream.skipped, skipped)
        if data.draw(st.booleans()):
            stream = stream.fork()
        done += length
    outputs = np.concatenate(parts, axis=1)
    for row, given_row in enumerate(x[..., 0]):
        fed, wanted = filled(given_row, policy)
        np.testing.assert_array_equal(outputs[row, :, 0], wanted)
        alone = session.stream()
        for value in fed:
            alone.step([value])
        assert stream.positions[row] == len(fed)
        for name, value in alone.state().items():
            np.testing.assert_array_equal(stream.state()[name][row], value[0], err_msg=name)


def test_the_last_output_of_a_feed_is_that_of_its_last_row(session: Session) -> None:
    stream = session.stream(2, on_nan="skip")
    np.testing.assert_array_equal(stream.feed([[[1], [2]], [[3], [np.nan]]]), [[2], [np.nan]])
    assert stream.feed([[[np.nan], [2]], [[3], [4]]], "none") is None
    assert stream.positions.tolist() == [3, 3]


def test_the_row_that_is_held_is_kept_by_a_snapshot_and_forgotten_by_a_reset(session: Session) -> None:
    stream = session.stream(on_nan="hold")
    stream.step([5])
    later = session.stream(on_nan="hold")
    later.restore(stream.snapshot())
    np.testing.assert_array_equal(later.step([np.nan]), [[5]])
    later.reset()
    np.testing.assert_array_equal(later.step([np.nan]), [[np.nan]])
    stopping = session.stream()
    stopping.restore(stream.snapshot())
    stopping.step([6])
    later.step([7])
    later.restore(stopping.snapshot())  # which holds no row: nothing stale may be fed
    np.testing.assert_array_equal(later.step([np.nan]), [[np.nan]])


def test_a_call_that_fails_leaves_the_row_that_is_held(bundle: Bundle) -> None:
    with edgemem.open(bundle.path, threads=1, device="cpu", guard=True) as guarded:
        stream = guarded.stream(on_nan="hold")
        stream.step([5])
        before = stream.snapshot()
        for call in (lambda: stream.step([1e30]), lambda: stream.feed([[1], [np.nan], [1e30]])):
            with pytest.raises(NonFiniteError, match="became inf"):
                call()
        assert stream.snapshot() == before
        np.testing.assert_array_equal(stream.step([np.nan]), [[5]])


def test_the_guard_takes_back_a_feed_around_skipped_rows(bundle: Bundle) -> None:
    with edgemem.open(bundle.path, threads=1, device="cpu", guard=True) as guarded:
        stream = guarded.stream(on_nan="skip")
        stream.step([5])
        before = stream.snapshot()
        with pytest.raises(NonFiniteError, match="became inf"):
            stream.feed([[1], [np.nan], [2], [1e30]])
        assert stream.snapshot() == before
        with pytest.raises(NonFiniteError, match="holds nan"):
            guarded.stream(on_nan="pass").step([np.nan])


def test_it_can_be_turned_off(session: Session) -> None:
    stream = session.stream(on_nan="pass")
    assert np.isnan(stream.step([np.nan])).all()
    assert stream.position == 1


def test_bfloat16_is_checked_too(folder: Path) -> None:
    bundle = tiny.save_bundle(folder / "on_nan_bfloat16", tiny.BFLOAT16, tiny.bfloat16_model())
    with edgemem.open(bundle.path, threads=1, device="cpu") as session:
        for bad in BAD:
            with pytest.raises(NonFiniteError, match=f"features at position 0 .* holds {bad}"):
                session.stream().step([1.0, bad])
            with pytest.raises(NonFiniteError, match=f"features at position 1 .* holds {bad}"):
                session.stream().feed([[1.0, 1.0], [bad, 1.0]])
        stream = session.stream(on_nan="hold")
        assert (stream.snapshot(), np.isnan(stream.step([np.nan, 1])).all()) == (
            session.stream(on_nan="hold").snapshot(),
            True,
        )
        first, second = stream.step([1.0, 2.0]).copy(), stream.step([np.inf, 9.0])
        np.testing.assert_array_equal(second - first, [[1.0, 2.0]])


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_one_bad_value_anywhere_in_a_step_is_seen(dtype: str) -> None:
    values = np.zeros((2, 1, 65), np.uint16 if dtype == "bfloat16" else dtype)
    is_bad = step_check(replace(tiny.FEATURES.input, dtype=dtype, shape=(65,)), values)
    limit = 3.38e38 if dtype == "bfloat16" else np.finfo(dtype).max
    for place in range(values.size):
        for value, wanted in ((np.nan, True), (np.inf, True), (-np.inf, True), (limit, False), (-limit, False)):
            values.reshape(-1)[place] = encode_bfloat16([value])[0] if dtype == "bfloat16" else value
            assert is_bad() is wanted
        values[...] = 0
    assert encode_bfloat16([np.nan])[0] == BFLOAT16_NAN


def test_steps_of_several_items_hold_but_do_not_skip(tmp_path: Path) -> None:
    path = tiny.save_bundle(tmp_path / "rates", *two_tensor_model()).path
    with edgemem.open(path, "onnxruntime", device="cpu") as session:
        with pytest.raises(InputError, match="one item of one input"):
            session.stream(on_nan="skip")
        stream, twin = (session.stream(held={"voice": np.ones(3)}, on_nan="hold") for _ in range(2))
        pair = np.ones((1, 2))
        before = stream.snapshot()
        with pytest.raises(NonFiniteError, match="samples at position 0"):
            stream.step({"samples": [np.nan, 1, 2, 3], "pair": pair})
        assert stream.snapshot() == before
        got = stream.feed({"samples": [1, np.nan, 2, np.inf], "pair": pair})
        np.testing.assert_array_equal(got["total"], twin.feed({"samples": [1, 1, 2, 2], "pair": pair})["total"])
        assert stream.snapshot() == twin.snapshot()
        with pytest.raises(NonFiniteError, match=r"voice .* holds nan"):
            stream.hold({"voice": [1, np.nan, 1]})


def test_a_policy_is_one_of_four_words_and_streams_of_two_policies_do_not_join(session: Session) -> None:
    with pytest.raises(InputError, match="stop, skip, hold, pass"):
        session.stream(on_nan="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one policy"):
        edgemem.Stream.join([session.stream(), session.stream(on_nan="hold")])


def test_tokens_are_whole_numbers_and_are_not_checked(tokens_bundle: Bundle) -> None:
    with edgemem.open(tokens_bundle.path, threads=1, device="cpu") as session:
        stream = session.stream(on_nan="hold")
        stream.step(3)
        assert "last.tokens" not in stream._buffers.arrays


def test_a_growing_state_cannot_skip_in_one_row_of_a_batch(folder: Path) -> None:
    contract = replace(
        tiny.OVERFLOW, states=(StateSpec("0.full.k", (1, None, 1)),), output_specs=tiny.OVERFLOW.output_specs
    )
    nodes = tiny.Nodes()
    nodes.Concat("past.0.full.k", nodes.Unsqueeze("features", nodes.const([1])), axis=2, out="present.0.full.k")
    nodes.Identity("features", out="predictions")
    bundle = tiny.save_bundle(folder / "on_nan_growing", contract, tiny.model_proto(contract, nodes))
    with edgemem.open(bundle.path, "onnxruntime", threads=1, device="cpu") as session:
        alone, both = session.stream(on_nan="skip"), session.stream(2, on_nan="skip")
        alone.feed([[1], [np.nan], [2]])
        np.testing.assert_array_equal(alone.state()["0.full.k"].ravel(), [1, 2])
        both.feed([[[1], [np.nan]], [[2], [np.nan]]])
        before = both.snapshot()
        with pytest.raises(EdgememError, match="cannot be skipped"):
            both.step([[1], [np.nan]])
        assert both.snapshot() == before
