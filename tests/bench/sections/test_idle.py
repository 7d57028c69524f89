"""Each step follows a pause."""

from __future__ import annotations

import edgemem
from edgemem.bench.loop import Loop
from edgemem.bench.sections import idle
from edgemem.bundle import Bundle


def test_an_idle_gap_comes_before_each_step(tokens: Bundle) -> None:
    gaps: list[float] = []
    with edgemem.open(tokens.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        made = idle.idle_gaps(loop, 12.5, 4, sleep=gaps.append)
        assert loop.stream.position == 4
    assert gaps == [0.0125] * 4
    assert made.latency.count == 4
