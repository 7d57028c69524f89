"""Intervals over seeds, and which rows are offered for a budget."""

from __future__ import annotations

import itertools

import pytest

from edgemem.errors import EdgememError
from edgemem.evidence import EVIDENCE, TASKS, Entry, Evidence, Mean, calibrate, ceiling, offers


def entry(row, bits, state_bytes=16384, step_us=50.0, budget=16384):
    return Entry(
        row, row, "", budget, state_bytes, [{"type": "window", "window": 16}], 3e-3, (1e-3, 3e-3, 1e-2),
        {"bits per byte": list(bits)}, step_us, 10.0, 400_000,
    )  # fmt: skip


def evidence(*entries):
    return Evidence({**{task: [] for task in TASKS}, "text": list(entries)}, {"text": ["delta at 4 KiB"]}, "one core")


def test_the_interval_of_three_seeds_is_that_of_student():
    mean = Mean((1.0, 2.0, 3.0))
    assert mean.value == 2.0
    assert mean.half == pytest.approx(4.303 / 3**0.5)
    assert mean.text(1) == "2.0 ± 2.5"


def test_one_seed_has_no_interval_and_rules_nothing_out():
    one = Mean((2.0,))
    assert one.half is None
    assert one.text(1) == "2.0 (one seed)"
    assert one.may_equal(Mean((9.0, 9.0, 9.0))) is None


def test_a_row_that_another_beats_in_everything_is_not_offered():
    best, cheap = entry("best", (2.0, 2.1, 2.0)), entry("cheap", (2.5, 2.6, 2.5), state_bytes=4096)
    slower = entry("slower", (2.2, 2.2, 2.2), step_us=60.0)
    found, slow = offers(evidence(slower, cheap, best), "text", 65536)
    assert [offer.entry.row for offer in found] == ["best", "cheap"]
    assert [offer.may_be_best for offer in found] == [True, False]
    assert slow == []


def test_one_seed_leaves_open_whether_a_row_is_as_good_as_the_best():
    found, _ = offers(evidence(entry("best", (2.0,)), entry("cheap", (2.5, 2.6, 2.5), step_us=40.0)), "text", 16384)
    assert [offer.may_be_best for offer in found] == [None, None]


def test_rows_that_need_more_bytes_and_rows_that_grow_are_not_offered():
    given = evidence(entry("large", (1.0,), state_bytes=65536), entry("full", (1.5,), state_bytes=0, budget=0))
    assert offers(given, "text", 16384) == ([], [])
    assert [each.row for each in ceiling(given, "text")] == ["full"]


def test_a_rate_leaves_out_what_is_too_slow_on_this_machine():
    quick, late = entry("quick", (2.5,), step_us=40.0), entry("late", (2.0,), step_us=90.0)
    found, slow = offers(evidence(quick, late), "text", 16384, speed=10.0, rate_hz=2000)
    assert [(offer.entry.row, offer.step_us) for offer in found] == [("quick", 400.0)]
    assert slow == [late]


def test_the_calibration_is_the_median_time_of_one_product():
    ticks = itertools.accumulate([0.0, 2e-3, 0.0, 8e-3, 0.0, 2e-3])
    assert calibrate(lambda: next(ticks), rounds=3) == pytest.approx(10.0)


def test_more_is_better_for_recall_and_chance_is_a_failure():
    assert TASKS["recall"].failed(1 / 32)
    assert not TASKS["recall"].failed(0.2)
    assert TASKS["text"].failed(8.0)
    assert TASKS["text"].failed(float("nan"))


def test_a_file_of_another_format_is_refused():
    with pytest.raises(EdgememError, match="is not edgemem's evidence"):
        Evidence.from_json({"format": "other"}, "evidence.json")
    with pytest.raises(EdgememError, match="version 2"):
        Evidence.from_json({**EVIDENCE.stamp({}), "version": 2})
