"""``edgemem choose``: it reads results, so the tests give it some."""

from __future__ import annotations

import json

import pytest

from edgemem.cli import choose_command
from edgemem.evidence import TASKS, Evidence
from tests.test_evidence import entry, evidence


@pytest.fixture
def known(monkeypatch):
    given = evidence(
        entry("window", (2.5, 2.6, 2.5), state_bytes=4096, step_us=40.0),
        entry("hybrid", (2.0, 2.1, 2.0), step_us=90.0),
        entry("full", (1.9,), state_bytes=0, budget=0),
    )
    monkeypatch.setattr(Evidence, "load", classmethod(lambda cls: given))
    monkeypatch.setattr(choose_command, "calibrate", lambda: 20.0)


@pytest.mark.usefixtures("known")
def test_it_prints_the_rows_worth_a_look_how_sure_that_is_and_what_was_not_tried(invoke):
    result = invoke("choose", "--bytes", "16K", "--task", "text")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    (hybrid,) = (line for line in lines if line.startswith("hybrid"))
    (window,) = (line for line in lines if line.startswith("window"))
    assert lines.index(hybrid) < lines.index(window)
    assert "2.033 ± 0.143" in hybrid
    assert hybrid.split()[-1] == "180"  # twice as slow a machine
    assert " no " in window
    assert "Not tried: delta at 4 KiB." in lines
    assert "For comparison, full: 1.900." in lines


@pytest.mark.usefixtures("known")
def test_json_holds_the_same(invoke):
    result = json.loads(invoke("choose", "--bytes", "4KiB", "--rate", "100Hz", "--json").stdout)
    assert result["budget_bytes"] == 4096
    (row,) = result["tasks"]["text"]["rows"]
    assert row["memory"] == "window"
    assert row["configuration"] == [{"type": "window", "window": 16}]
    assert row["step_us"] == 80.0
    assert row["learning_rates_tried"] == [1e-3, 3e-3, 1e-2]


@pytest.mark.usefixtures("known")
def test_a_rate_that_none_reaches_leaves_none(invoke):
    result = invoke("choose", "--bytes", "16K", "--task", "text", "--rate", "100kHz")
    assert result.exit_code == 0
    assert "Too slow for the rate: window (); hybrid ()." in result.output


@pytest.mark.parametrize("amount", ["0", "-1", "64X", "K", "nan", "99999999G"])
def test_an_amount_that_is_none_is_refused(invoke, amount):
    result = invoke("choose", f"--bytes={amount}")
    assert result.exit_code == 2
    assert f"'{amount}' is not an amount such as 64K." in result.output


def test_the_committed_results_load():
    assert set(Evidence.load().entries) == set(TASKS)
