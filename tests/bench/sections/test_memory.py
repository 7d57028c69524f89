"""A leak shows as growth of the process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgemem.bench.loop import Loop
from edgemem.bench.sections.memory import resident_growth
from edgemem.bundle import Bundle


def test_a_leak_shows_as_growth_of_resident_memory(tokens: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    leaked: list[bytes] = []
    turns = Loop.turns

    def leak(loop: Loop) -> Iterator[object]:
        for turn in turns(loop):
            leaked.append(bytes(20_000))
            yield turn

    monkeypatch.setattr(Loop, "turns", leak)
    before, grown = resident_growth(tokens.path, 2_000, threads=1)
    assert before > 0
    assert grown > 20 << 20
