"""A long input is fed in the same rounds as single steps."""

from __future__ import annotations

import edgemem
from edgemem.bench.loop import Loop
from edgemem.bench.sections import prefill
from edgemem.bundle import Bundle


def test_a_prefill_starts_anew_each_round(tokens: Bundle) -> None:
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        fed, stepped = prefill.feed_and_step(loop, 30, rounds=3, steps=5)
        assert loop.stream.position == 5
    assert fed.shape == (3, 1)
    assert stepped.shape == (3, 5)
    assert (fed > 0).all()
    assert (stepped > 0).all()
