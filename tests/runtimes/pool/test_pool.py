"""A stream of a pool computes what it computes alone, bit for bit, whatever the others do."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.contract import Stft
from edgemem.errors import EdgememError, InputError, NonFiniteError, PoolFullError, QueueFullError, SnapshotError
from edgemem.runtimes import Session, Stream
from edgemem.runtimes.pool import Pool, PoolStream, parts_soon
from tests.runtimes import tiny
from tests.runtimes.test_front_ends import framed_session, spectral_session
from tests.runtimes.test_rates import two_tensor_model

VOICE = {"voice": np.float32([1, 2, 3])}


@pytest.fixture(scope="module", params=["tokens", "framed", "spectral", "two_tensors"])
def model(request: pytest.FixtureRequest, tokens_bundle: Bundle, folder: Path) -> Iterator[Session]:
    kind = request.param
    if kind == "tokens":
        session = edgemem.open(tokens_bundle.path, threads=1, device="cpu")
    elif kind == "framed":
        session = framed_session(folder, 5)
    elif kind == "spectral":
        session = spectral_session(folder, Stft(16, 4), 5)
    else:
        contract, proto = two_tensor_model()
        bundle = tiny.save_bundle(folder / "two_tensors_pool", contract, proto)
        session = edgemem.open(bundle.path, threads=1, device="cpu")
    with session:
        yield session


def items(session: Session, rng: np.random.Generator, rows: int, steps: int | None = None) -> Any:
    """Random data of ``steps`` steps for rows ``[rows, N, ...]``, or of one step."""
    found = {}
    for spec in session.contract.data:
        shape = (rows, (steps or 1) * spec.step_items, *spec.item_shape)
        values = rng.integers(0, spec.vocab_size or 2, shape) if spec.is_tokens else rng.normal(size=shape)
        values = values if spec.is_tokens else values.astype(np.float32)
        found[spec.name] = values[:, 0] if steps is None and spec.step_items == 1 else values
    return found if len(found) > 1 else next(iter(found.values()))


def row(x: Any, index: int) -> Any:
    if isinstance(x, dict):
        return {name: values[index : index + 1] for name, values in x.items()}
    return x[index : index + 1]


def same(found: Any, wanted: Any, exact: bool) -> bool:
    if isinstance(found, dict):
        return all(same(found[name], wanted[name], exact) for name in wanted)
    if found is None or exact:
        return bool(np.array_equal(found, wanted))
    return bool(np.allclose(found, wanted, rtol=1e-5, atol=1e-5))


class Both:
    """Streams of a pool, each beside one that runs alone."""

    def __init__(self, session: Session, pool: Pool, slots: int, seed: int) -> None:
        self.session, self.pool, self.slots = session, pool, slots
        # ONNX Runtime's ReduceSum rounds a short row of a batch otherwise than the row alone.
        self.exact = session.bundle.path.name.partition("_")[0].rstrip("0123456789") not in ("framed", "two")
        self.rng = np.random.default_rng(seed)
        self.pairs: list[tuple[PoolStream, Stream]] = []
        self.steps = self.wrong = 0
        self.held = VOICE if session.contract.held else None

    def pick(self) -> int:
        return int(self.rng.integers(len(self.pairs)))

    def act(self) -> None:
        room = len(self.pairs) < self.slots
        action = self.rng.choice(["step"] * 12 + ["feed", "feed", "open", "open", "close", "fork", "park", "reset"])
        if not self.pairs or (action == "open" and room):
            self.pairs.append((self.pool.open(self.held), self.session.stream(held=self.held)))
        elif action == "close":
            self.pairs.pop(self.pick())[0].close()
        elif action == "fork" and room:
            pooled, lone = self.pairs[self.pick()]
            self.pairs.append((pooled.fork(), lone.fork()))
        elif action == "park":
            index = self.pick()
            pooled, lone = self.pairs[index]
            parked = pooled.snapshot()
            together = self.pool.wait(parts_soon([stream for stream, _ in self.pairs]))
            for (stream, alone), parts in zip(self.pairs, together, strict=True):
                self.wrong += self.exact and stream.pack(parts) != alone.snapshot()
            self.wrong += self.exact and parked != lone.snapshot()
            pooled.close()
            self.pairs[index] = (self.pool.open(restore=parked), lone)
        elif action == "reset":
            for stream in self.pairs[self.pick()]:
                stream.reset()
        elif action == "feed":
            pooled, lone = self.pairs[self.pick()]
            steps = int(self.rng.integers(1, 14))
            x = items(self.session, self.rng, 1, steps)
            outputs = self.rng.choice(["last", "all"])
            self.wrong += not same(pooled.feed(x, outputs), lone.feed(x, outputs), self.exact)
            self.steps += steps
        else:
            self.step()

    def step(self) -> None:
        chosen = self.rng.permutation(len(self.pairs))[: self.rng.integers(1, len(self.pairs) + 1)]
        x = items(self.session, self.rng, len(chosen))
        streams = [self.pairs[i][0] for i in chosen]
        if self.rng.random() < 0.5:  # past the queue, or by way of it
            found = self.pool.step(streams, x)
        else:
            found = self.pool.wait(self.pool.step_soon(streams, x, wake=False)).outputs
        for place, index in enumerate(chosen):
            pooled, lone = self.pairs[index]
            self.wrong += not same(row(found, place), lone.step(row(x, place)), self.exact)
            self.wrong += pooled.position != lone.position
            self.steps += 1


@pytest.mark.parametrize("slots", [1, 5, 8])
def test_random_joins_steps_feeds_parks_resumes_and_forks_change_no_bit(model: Session, slots: int) -> None:
    with model.pool(slots) as pool:
        both = Both(model, pool, slots, seed=slots)
        for _ in range(120):
            both.act()
        assert both.steps > 60
        assert both.wrong == 0


@pytest.mark.parametrize("on_nan", ["stop", "hold"])
def test_calls_that_overlap_run_in_the_order_in_which_they_were_made(features_bundle: Bundle, on_nan: Any) -> None:
    rng = np.random.default_rng(4)
    with edgemem.open(features_bundle.path, threads=1) as session, session.pool(5, on_nan=on_nan) as pool:
        streams = [pool.open() for _ in range(5)]
        lone = [session.stream(on_nan=on_nan) for _ in range(5)]
        for _ in range(20):
            calls = []
            for _ in range(6):
                chosen = rng.permutation(5)[: rng.integers(1, 6)]
                x = rng.integers(1, 9, (len(chosen), 2)).astype(np.float32)
                if on_nan == "hold":
                    x[rng.random(len(chosen)) < 0.3] = np.nan
                calls.append((chosen, x, pool.step_soon([streams[i] for i in chosen], x)))
                if rng.random() < 0.3:
                    feed = rng.integers(1, 9, (3, 2)).astype(np.float32)
                    calls.append(([chosen[0]], feed, streams[chosen[0]].soon.feed(feed)))
            for chosen, x, future in calls:
                made = future.result(10)
                for place, index in enumerate(chosen):
                    if isinstance(made, np.ndarray):
                        np.testing.assert_array_equal(made, lone[index].feed(x))
                    else:
                        np.testing.assert_array_equal(made.outputs[place], lone[index].step(x[place])[0])


@pytest.mark.long
def test_a_million_steps_differ_nowhere(tokens_bundle: Bundle) -> None:
    with edgemem.open(tokens_bundle.path, threads=1, device="cpu") as session, session.pool(16) as pool:
        both = Both(session, pool, 16, seed=3)
        while both.steps < 1_000_000:
            both.act()
        assert both.wrong == 0


def test_threads_share_a_pool(session: Session) -> None:
    wrong: list[int] = []

    def run(pool: Pool, seed: int) -> None:
        rng = np.random.default_rng(seed)
        pooled, lone = pool.open(), session.stream()
        for _ in range(60):
            token = int(rng.integers(tiny.VOCAB))
            wrong.append(not np.array_equal(pooled.step(token), lone.step(token)))
        pooled.close()

    with session.pool(4) as pool:
        threads = [threading.Thread(target=run, args=(pool, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wrong) == 240
        assert not any(wrong)
        assert pool.stats.streams == 0


def test_asyncio_awaits_futures(session: Session) -> None:
    async def run(pool: Pool) -> None:
        streams = [await asyncio.wrap_future(pool.open_soon()) for _ in range(3)]
        lone = session.stream(3)
        for token in range(5):
            outcomes = await asyncio.gather(*(asyncio.wrap_future(stream.soon.step(token)) for stream in streams))
            np.testing.assert_array_equal(
                np.concatenate([outcome.outputs for outcome in outcomes]), lone.step([token] * 3)
            )

    with session.pool(4) as pool:
        asyncio.run(run(pool))


def held_up(pool: Pool) -> threading.Event:
    """Keep the pool's thread busy until the event is set."""
    go, busy = threading.Event(), threading.Event()

    def wait() -> None:
        busy.set()
        go.wait(10)

    pool.call(wait)
    assert busy.wait(10)
    return go


def test_a_full_queue_refuses_and_changes_nothing(session: Session) -> None:
    with session.pool(2, queue=3) as pool:
        stream, other = pool.open(), pool.open()
        go = held_up(pool)
        futures = [stream.soon.step(token) for token in range(3)]
        with pytest.raises(QueueFullError, match="3 calls wait for the stream"):
            pool.step_soon([other, stream], [1, 1])
        go.set()
        lone = session.stream()
        for token, future in enumerate(futures):
            np.testing.assert_array_equal(future.result(10).outputs, lone.step(token))
        assert (stream.position, other.position) == (3, 0)
        assert pool.stats.refused == 1


def test_steps_that_wait_run_as_one_batch(session: Session) -> None:
    with session.pool(4) as pool:
        streams = [pool.open() for _ in range(4)]
        go, before = held_up(pool), pool.stats.ticks
        futures = [stream.soon.step(1) for stream in streams]
        go.set()
        for future in futures:
            future.result(10)
        assert pool.stats.ticks == before + 1


def test_a_step_here_and_now_is_made_only_where_nobody_waits_or_is_at_it(session: Session) -> None:
    with session.pool(2) as pool:
        stream, lone = pool.open(), session.stream()
        outcome = pool.try_step([stream], 1)
        assert outcome is not None
        np.testing.assert_array_equal(outcome.outputs, lone.step(1))
        go = held_up(pool)
        assert pool.try_step([stream], 2) is None  # the thread is at it
        go.set()
        later = pool.step_soon([stream], 2, wake=False)
        assert pool.try_step([stream], 3) is None  # a step waits, which comes first
        np.testing.assert_array_equal(pool.wait(later).outputs, lone.step(2))
        np.testing.assert_array_equal(stream.step(3), lone.step(3))
        stream.close()
        assert pool.try_step([stream], 1) is None  # the queue knows what to say
        assert (lone.position, pool.stats.steps, pool.stats.ticks) == (3, 3, 3)


def test_a_partial_batch_runs_at_its_deadline_and_a_full_one_at_once(session: Session) -> None:
    with session.pool(2, wait_ms=300) as pool:
        first, second = pool.open(), pool.open()
        future = first.soon.step(1)
        with pytest.raises(TimeoutError):
            future.result(0.05)
        second.soon.step(1).result(0.2)
        assert future.done()
        assert pool.stats.ticks == 1
        first.step(2)  # alone, once the deadline has passed
        assert pool.stats.ticks == 2


def test_others_step_between_the_chunks_of_a_long_feed(session: Session) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, tiny.VOCAB, 400)
    with session.pool(2, chunk=2) as pool:
        long, short = pool.open(), pool.open()
        future = long.soon.feed(tokens)
        steps = 0
        while not future.done():
            short.step(1)
            steps += 1
        assert steps > 10
        lone = session.stream()
        for start in range(0, len(tokens), 2):
            wanted = lone.feed(tokens[start : start + 2])
        np.testing.assert_array_equal(future.result(), wanted)


def test_slots_are_limited_and_given_back(session: Session) -> None:
    with session.pool(2) as pool:
        first, _ = pool.open(), pool.open()
        first.step(1)
        with pytest.raises(PoolFullError, match="all 2 slots"):
            pool.open()
        with pytest.raises(PoolFullError):
            first.fork()
        first.close()
        first.close()
        with pytest.raises(EdgememError, match="the stream is closed"):
            first.step(1)
        again = pool.open()
        np.testing.assert_array_equal(again.step(1), session.stream().step(1))


def test_a_slot_keeps_nothing_of_the_stream_before(folder: Path) -> None:
    contract, proto = two_tensor_model()
    bundle = tiny.save_bundle(folder / "two_tensors_slots", contract, proto)
    with edgemem.open(bundle.path, threads=1, device="cpu") as session, session.pool(2) as pool:
        x = items(session, np.random.default_rng(0), 1)
        pool.open(VOICE).close()
        with pool.open() as stream, pool.open(VOICE):  # the first takes the slot over
            with pytest.raises(InputError, match="voice"):
                stream.step(x)
            stream.hold(VOICE)
            wanted = session.stream(held=VOICE).step(x)
            assert same(stream.step(x), wanted, exact=False)


def test_a_bad_snapshot_takes_no_slot_and_leaves_the_stream_as_it_was(session: Session) -> None:
    with session.pool(1) as pool:
        with pytest.raises(SnapshotError):
            pool.open(restore=b"no snapshot")
        stream, lone = pool.open(), session.stream()
        stream.step(1), lone.step(1)
        with pytest.raises(SnapshotError):
            stream.restore(b"no snapshot")
        np.testing.assert_array_equal(stream.step(2), lone.step(2))


@pytest.mark.parametrize("bad", [tiny.VOCAB, -1, 0.5, [1, 2]])
def test_wrong_data_are_refused_before_they_wait(session: Session, bad: Any) -> None:
    with session.pool(1) as pool:
        stream = pool.open()
        with pytest.raises(InputError):
            stream.step(bad)
        assert (stream.position, pool.stats.ticks) == (0, 0)


def test_nan_stops_one_stream_and_not_the_others(features_bundle: Bundle) -> None:
    with edgemem.open(features_bundle.path, threads=1, device="cpu") as session, session.pool(3) as pool:
        streams, lone = [pool.open() for _ in range(3)], session.stream()
        x = np.float32([[1, 2], [np.nan, 0], [1, 2]])
        outcome = pool.step_soon(streams, x).result(10)
        assert list(outcome.errors) == [1]
        assert isinstance(outcome.errors[1], NonFiniteError)
        np.testing.assert_array_equal(outcome.outputs[2:], lone.step(x[0]))
        assert [stream.position for stream in streams] == [1, 0, 1]
        with pytest.raises(NonFiniteError):
            streams[0].feed(np.float32([[1, 2], [np.inf, 0]]))
        assert streams[0].position == 1


def test_held_rows_are_those_of_the_stream_itself(features_bundle: Bundle) -> None:
    with edgemem.open(features_bundle.path, threads=1) as session, session.pool(2, on_nan="hold") as pool:
        streams = [pool.open() for _ in range(2)]
        lone = [session.stream(on_nan="hold") for _ in range(2)]
        for x in ([[1, 2], [3, 4]], [[np.nan, 0], [5, 6]], [[7, 8], [np.inf, 1]], [[np.nan, 0], [np.nan, 0]]):
            found = pool.step(streams, np.float32(x))
            wanted = np.concatenate([stream.step(np.float32(row)) for stream, row in zip(lone, x, strict=True)])
            np.testing.assert_array_equal(found, wanted)


def test_the_guard_takes_back_one_row_alone(guarded: Session) -> None:
    with guarded.pool(2) as pool:
        streams = [pool.open() for _ in range(2)]
        zero, one = np.float32([0, 1]), np.float32([1, 1])  # the model divides by them
        pool.step(streams, np.stack([one, one]))
        outcome = pool.step_soon(streams, np.stack([zero, one])).result(10)
        assert isinstance(outcome.errors[0], NonFiniteError)
        assert [stream.position for stream in streams] == [1, 2]
        before = streams[0].snapshot()
        with pytest.raises(NonFiniteError):
            streams[0].feed(np.stack([one] * 20 + [zero]))
        assert streams[0].snapshot() == before


def test_a_stream_that_ended_says_so(session: Session) -> None:
    with session.pool(2) as pool:
        stream, other = pool.open(), pool.open()
        stream.finish()
        with pytest.raises(InputError, match="the stream has ended"):
            stream.step(1)
        other.step(1)
        stream.reset()
        np.testing.assert_array_equal(stream.step(1), session.stream().step(1))


def test_closing_a_session_or_a_pool_ends_what_waits(tokens_bundle: Bundle) -> None:
    session = edgemem.open(tokens_bundle.path, threads=1, device="cpu")
    pool = session.pool(1)
    stream = pool.open()
    go = held_up(pool)
    future = stream.soon.step(1)
    closing = threading.Thread(target=session.close)
    closing.start()
    while not pool.closed:
        time.sleep(0.001)
    go.set()
    closing.join(10)
    assert "the pool is closed" in str(future.result(10).errors[0])
    with pytest.raises(EdgememError, match="the pool is closed"):
        stream.step(1)
    with pytest.raises(EdgememError, match="the session is closed"):
        session.pool()


def test_a_growing_state_and_wrong_numbers_are_refused(growing_bundle: Bundle, session: Session) -> None:
    with (
        edgemem.open(growing_bundle.path, threads=1, device="cpu") as growing,
        pytest.raises(InputError, match="its state grows"),
    ):
        growing.pool()
    for wrong in ({"slots": 0}, {"queue": 0}, {"chunk": 0}, {"wait_ms": -1}):
        with pytest.raises(InputError):
            session.pool(**wrong)


def test_what_comes_during_the_last_turn_of_a_caller_is_done_by_the_thread(tokens_bundle: Bundle) -> None:
    """The pool's thread looks while the turn is under way and finds nothing; then the caller leaves."""
    with edgemem.open(tokens_bundle.path, threads=1, device="cpu") as session, session.pool(slots=2) as pool:
        stream, stepping, looked = pool.open(), threading.Event(), threading.Event()
        step = pool._bank.step

        def slow(*arguments: Any) -> Any:
            stepping.set()
            assert looked.wait(10)
            return step(*arguments)

        pool._bank.step = slow  # type: ignore[method-assign]
        caller = threading.Thread(target=stream.step, args=(1,))
        caller.start()
        assert stepping.wait(10)
        closed = stream.soon.close()
        time.sleep(0.2)  # the thread has looked
        looked.set()
        caller.join(10)
        closed.result(10)
        assert pool.stats.streams == 0
