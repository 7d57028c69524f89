"""The measuring loops time what they should, in the order they should."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import edgemem
from edgemem.bench import measure
from edgemem.bench.loop import Loop
from edgemem.bench.measure import Contender
from edgemem.bundle import Bundle


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


@pytest.fixture
def little_garbage() -> Iterator[None]:
    """Each call of interleave collects garbage, which takes long if torch is loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("little_garbage")
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
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


def test_the_loop_takes_as_many_steps_as_it_times(tokens: Bundle) -> None:
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        samples, seconds = measure.run_loop(loop, 123)
        assert loop.stream.position == 1 + 123, "the first token is the prompt"
    assert samples.size == 123
    assert (samples > 0).all()
    assert seconds >= samples.sum() / 1e9
