"""A short form of the attack on files; ``make fuzz`` runs the long one."""

from __future__ import annotations

import random
from pathlib import Path
from unittest.mock import ANY

import pytest

from edgemem.runtimes import snapshot
from tests.fuzz.files import BAD, run_case, run_cases
from tests.fuzz.mutations import mutate_bytes, mutate_json
from tests.fuzz.targets import TARGETS, Snapshot


@pytest.mark.parametrize("name", TARGETS)
def test_a_changed_file_is_refused_or_loads_as_what_it_says(name: str) -> None:
    outcomes = list(run_cases(name, 0, 60))
    assert [case for case in outcomes if case[1] in BAD] == []
    assert any(outcome == "refused" for _, outcome, _ in outcomes)


@pytest.mark.long
@pytest.mark.parametrize("name", TARGETS)
def test_a_thousand_changed_files_are_refused_or_load_as_what_they_say(name: str) -> None:
    assert [case for case in run_cases(name, 60, 1000) if case[1] in BAD] == []


def test_a_seed_repeats_a_mutation() -> None:
    text = b'{"a": [1, "b", {"c": null}]}'
    for mutate in (mutate_bytes, mutate_json):
        first, again = ([mutate(random.Random(seed), text) for seed in range(50)] for _ in range(2))
        assert first == again
        assert len(set(first)) > 25


def test_what_may_not_happen_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attack finds a reader that raises something else, and one that loads a changed file."""
    target = Snapshot(tmp_path)
    cases = range(200)
    assert {run_case("snapshot", target, number)[0] for number in cases} <= {"refused", "the same", "another model"}
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_digest", lambda facts, tensors: ANY)
        assert any(run_case("snapshot", target, number)[0] == "silent wrong load" for number in cases)
    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "_facts", lambda data: {}[len(data)])
        assert all(run_case("snapshot", target, number)[0] == "another exception" for number in cases)
