"""The measuring loops time what they say, in the order they say."""

from __future__ import annotations

import gc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.bench import measure
from edgemem.bench.measure import Contender, Inputs, Loop
from edgemem.bundle import Bundle
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import NonFiniteError

FEATURES = Contract((InputSpec("features", (3,)),), (OutputSpec("predictions", (2,)),), (StateSpec("h", (2,)),))


class FakeClock:
    """Time that passes when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def test_each_step_is_timed_once_and_the_rest_is_not() -> None:
    calls: list[str] = []
    out = np.zeros(3, dtype=np.int64)
    assert measure.time_steps(lambda: calls.append("step"), out, lambda: calls.append("after")) is out
    assert calls == ["step", "after"] * 3
    assert (out > 0).all()


def test_the_garbage_collector_is_off_while_timing_and_as_it_was_afterwards() -> None:
    seen: list[bool] = []
    measure.time_steps(lambda: seen.append(gc.isenabled()), np.zeros(2, dtype=np.int64))
    assert seen == [False, False]
    assert gc.isenabled()
    with pytest.raises(RuntimeError), measure.collector_off():
        raise RuntimeError
    assert gc.isenabled()


# Few examples: each collects garbage once, which takes a while where torch is loaded.
@settings(max_examples=8)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))
def test_every_contender_has_its_turn_in_every_round(names: int, rounds: int, steps: int, warm: int) -> None:
    turns: list[str] = []
    calls: Counter[str] = Counter()

    def contender(name: str) -> Contender:
        return Contender(
            name,
            lambda: calls.update([f"step {name}"]),
            lambda: turns.append(name),
            lambda: calls.update([f"after {name}"]),
        )

    contenders = [contender(f"c{i}") for i in range(names)]
    told: list[tuple[int, int]] = []
    samples = measure.interleave(
        contenders,
        rounds=rounds,
        steps=steps,
        warm=warm,
        warm_ms=0.0,
        progress=lambda _, done, total: told.append((done, total)),
    )
    for round_ in range(rounds):
        assert sorted(turns[round_ * names : (round_ + 1) * names]) == sorted(c.name for c in contenders)
    for c in contenders:
        assert samples[c.name].shape == (rounds, steps)
        assert (samples[c.name] > 0).all()
        assert calls[f"step {c.name}"] == calls[f"after {c.name}"] == rounds * (steps + warm)
    assert told[-1] == (rounds * names, rounds * names)


def test_the_order_of_the_turns_differs_from_round_to_round() -> None:
    turns: list[str] = []
    contenders = [Contender(n, lambda: None, lambda n=n: turns.append(n)) for n in "abcd"]
    measure.interleave(contenders, rounds=8, steps=1)
    assert len({tuple(turns[i : i + 4]) for i in range(0, 32, 4)}) > 1


def test_a_turn_is_warmed_up_by_steps_and_by_time() -> None:
    calls: list[int] = []
    measure.interleave([Contender("a", lambda: calls.append(1))], rounds=1, steps=1, warm=2, warm_ms=1.0)
    assert len(calls) > 3


def test_contenders_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        measure.interleave([Contender("a", lambda: None), Contender("a", lambda: None)], rounds=1, steps=1)


def test_a_paced_loop_that_keeps_up_misses_nothing() -> None:
    clock = FakeClock()

    def work() -> None:
        clock.now += 4_000_000

    made = measure.pace(work, lambda: None, 100.0, 50, clock=clock, sleep=clock.sleep)
    assert (made.steps, made.misses, made.worst_lateness_ms) == (50, 0, 0.0)
    assert made.response.max_ms == made.response.min_ms == 4.0
    assert clock.now == 49 * 10_000_000 + 4_000_000


def test_a_late_step_does_not_move_the_later_ticks() -> None:
    clock = FakeClock()
    durations = iter([25_000_000] + [1_000_000] * 9)

    def work() -> None:
        clock.now += next(durations)

    made = measure.pace(work, lambda: None, 100.0, 10, clock=clock, sleep=clock.sleep)
    # Step 0 is done at 25 ms instead of 10; step 1, released at 10, at 26 instead of 20; step 2 at 27, before 30.
    assert made.misses == 2
    assert made.worst_lateness_ms == 15.0


def test_choosing_the_next_input_counts_against_the_deadline() -> None:
    clock = FakeClock()

    def choose() -> None:
        clock.now += 11_000_000

    made = measure.pace(lambda: None, choose, 100.0, 5, clock=clock, sleep=clock.sleep)
    assert made.misses == 5


def test_an_idle_gap_comes_before_each_step(tokens: Bundle) -> None:
    gaps: list[float] = []
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        made = measure.idle_gaps(loop, 12.5, 4, sleep=gaps.append)
        assert loop.stream.position == 4
    assert gaps == [0.0125] * 4
    assert made.latency.count == 4


def test_the_inputs_are_those_of_run(tokens: Bundle) -> None:
    inputs = Inputs(tokens.contract)
    logits = np.full((1, 16), -np.inf, dtype=np.float32)
    logits[0, 7] = 0.0
    assert inputs.after(logits) == 7
    assert type(inputs.first()) is int
    assert inputs.sequence(600).shape == (600,)
    features = Inputs(FEATURES)
    assert features.first().shape == features.after(np.zeros((1, 2))).shape == (3,)
    assert features.sequence(600).shape == (600, 3)
    assert features.sequence(5).dtype == np.float32


def test_the_same_inputs_come_every_time() -> None:
    assert (Inputs(FEATURES).sequence(300) == Inputs(FEATURES).sequence(300)).all()


def test_the_loop_takes_as_many_steps_as_it_times(tokens: Bundle) -> None:
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        samples, seconds = measure.run_loop(loop, 123)
        assert loop.stream.position == 123
    assert samples.size == 123
    assert (samples > 0).all()
    assert seconds >= samples.sum() / 1e9


def test_a_model_that_puts_out_nan_is_not_measured(broken: Bundle) -> None:
    with edgemem.open(broken.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        loop.check()
        loop.step()
        with pytest.raises(NonFiniteError, match="position 1 the model puts out NaN"):
            loop.check()


@pytest.mark.parametrize("position", [0, 1, 3, 7])
def test_an_injected_state_stands_at_its_position(position: int) -> None:
    sealed = Contract(
        (InputSpec("tokens", (), "int64", 4),),
        (OutputSpec("logits", (4,)),),
        (StateSpec("position", (), "int64"), StateSpec("kv.k", (2, None, 3)), StateSpec("sum", (5,))),
        position="none",
    )
    reached = {
        "position": np.array([2], dtype=np.int64),
        "kv.k": np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3),
        "sum": np.ones((1, 5), dtype=np.float32),
    }
    moved = measure.state_at(sealed, reached, position)
    assert moved["position"].tolist() == [position]
    assert moved["kv.k"].shape == (1, 2, position, 3)
    for i in range(position):
        assert (moved["kv.k"][:, :, i] == reached["kv.k"][:, :, i % 2]).all()
    assert moved["sum"] is reached["sum"]


def test_an_empty_growing_state_cannot_be_stretched() -> None:
    growing = Contract(
        (InputSpec("tokens", (), "int64", 4),), (OutputSpec("logits", (4,)),), (StateSpec("kv.k", (2, None, 3)),)
    )
    with pytest.raises(ValueError, match="nothing to repeat"):
        measure.state_at(growing, {"kv.k": np.zeros((1, 2, 0, 3), dtype=np.float32)}, 4)


def test_a_sweep_steps_at_each_position_with_the_state_the_model_reached(tokens: Bundle) -> None:
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        contenders = measure.sweep_contenders("x", loop, session.contract, (0, 1_000, 10**9), seed_steps=9)
        assert [c.name for c in contenders] == ["x@0", "x@1000", "x@1000000000"]
        for contender, position in zip(contenders, (0, 1_000, 10**9), strict=True):
            contender.prepare()
            assert loop.stream.position == position
            assert loop.stream.state()["0.sum"].any() == (position > 0)
        samples = measure.interleave(contenders, rounds=6, steps=2)
        sweep = measure.sweep_of("x", samples, session.contract, (0, 1_000, 10**9))
    assert [p.position for p in sweep.points] == [0, 1_000, 10**9]
    assert {p.state_bytes for p in sweep.points} == {tokens.contract.state_bytes}
    assert {p.samples for p in sweep.points} == {12}
    assert sweep.last_over_first.value == pytest.approx(
        float(np.median(np.median(samples["x@1000000000"], axis=1) / np.median(samples["x@1000"], axis=1)))
    )


def test_a_prefill_starts_anew_each_round(tokens: Bundle) -> None:
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        fed, stepped = measure.prefill(loop, 30, rounds=3, steps=5)
        assert loop.stream.position == 5
    assert fed.shape == (3, 1)
    assert stepped.shape == (3, 5)
    assert (fed > 0).all()
    assert (stepped > 0).all()
