"""A paced loop keeps the ticks of its clock and counts the deadlines it misses."""

from __future__ import annotations

from edgemem.bench.sections import deadline


class FakeClock:
    """Time that passes when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds * 1e9)


def test_a_paced_loop_that_keeps_up_misses_nothing() -> None:
    clock = FakeClock()

    def work() -> None:
        clock.now += 4_000_000

    made = deadline.pace(work, lambda: None, 100.0, 50, clock=clock, sleep=clock.sleep)
    assert (made.steps, made.misses, made.worst_lateness_ms) == (50, 0, 0.0)
    assert made.response.max_ms == made.response.min_ms == 4.0
    assert clock.now == 49 * 10_000_000 + 4_000_000


def test_a_late_step_does_not_move_the_later_ticks() -> None:
    clock = FakeClock()
    durations = iter([25_000_000] + [1_000_000] * 9)

    def work() -> None:
        clock.now += next(durations)

    made = deadline.pace(work, lambda: None, 100.0, 10, clock=clock, sleep=clock.sleep)
    # Step 0 is done at 25 ms instead of 10; step 1, released at 10, at 26 instead of 20; step 2 at 27, before 30.
    assert made.misses == 2
    assert made.worst_lateness_ms == 15.0


def test_choosing_the_next_input_counts_against_the_deadline() -> None:
    clock = FakeClock()

    def choose() -> None:
        clock.now += 11_000_000

    made = deadline.pace(lambda: None, choose, 100.0, 5, clock=clock, sleep=clock.sleep)
    assert made.misses == 5
