"""``edgemem bench``: complete reports or none."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgemem.bench import measure, page, stored
from edgemem.bench.sections import prefill
from edgemem.bench.subject import Plan
from edgemem.bundle import Bundle
from edgemem.cli import main
from edgemem.errors import MissingDependencyError
from tests.bench.examples import example_result

QUICK = ["--quick", "--steps", "20", "--threads", "1"]


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_the_tables_are_printed(decoder: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(Plan.quick(), paced_seconds=0.2)
    monkeypatch.setattr(Plan, "quick", lambda: plan)
    done = bench(decoder.path, *QUICK, "--rate", "200", "--idle-gap", "1", "--full")
    assert done.exit_code == 0, done.output
    for title in (
        "Latency of a step",
        "Latency against position",
        "Compared with",
        "Floor: time to read the weights once",
        "Prefill",
        "Deadlines at 200 Hz",
        "Latency after a pause of 1.00 ms",
        "Memory breakdown",
        "Time to the first output",
        "Environment",
    ):
        assert title in done.stdout
    assert "needs 1,000 samples" in done.stdout
    assert "hand-written numpy loop" in done.stdout


def test_json_on_stdout_is_nothing_but_json(tokens: Bundle) -> None:
    done = bench(tokens.path, *QUICK, "--no-baselines", "--json", "-")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    assert data["steps"]["latency"]["count"] == 20
    assert data["comparison"] is None
    assert data["quick"] is True


def test_both_reports_are_written(tokens: Bundle, tmp_path: Path) -> None:
    done = bench(tokens.path, *QUICK, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert done.exit_code == 0, done.output
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    skipped = {baseline["key"]: baseline["skipped"] or "" for baseline in data["comparison"]["baselines"]}
    assert skipped.pop("numpy_loop") == ""
    assert all("decoders of edgemem" in why for why in skipped.values())
    assert (tmp_path / "r.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert str(tmp_path / "r.html") in done.stderr


def test_a_page_is_made_of_the_results_of_boards(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_bytes(stored.report(example_result()))
    done = bench("--page", tmp_path / "a.json", tmp_path / "b.json", "--html", tmp_path / "boards.html")
    assert done.exit_code == 0, done.output
    assert "2 boards" in (tmp_path / "boards.html").read_text(encoding="utf-8")
    assert bench(tmp_path / "a.json", tmp_path / "b.json").exit_code == 2, "without --page these would be bundles"


def test_without_the_report_packages_nothing_is_measured(
    tokens: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise MissingDependencyError("the HTML report needs matplotlib.", hint='pip install "edgemem-toolkit[report]"')

    monkeypatch.setattr(page, "require", missing)
    monkeypatch.setattr(measure, "time_steps", lambda *_: pytest.fail("measured"))
    done = bench(tokens.path, *QUICK, "--html", tmp_path / "r.html")
    assert done.exit_code == 1
    assert 'pip install "edgemem-toolkit[report]"' in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_refused_before_measuring(
    tokens: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(measure, "time_steps", lambda *_: pytest.fail("measured"))
    done = bench(tokens.path, *QUICK, option, tmp_path / "missing" / "r")
    assert done.exit_code == 1
    assert "is not a folder" in done.stderr


def test_a_run_that_is_interrupted_writes_nothing(
    tokens: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prefill, "feed_and_step", interrupted)
    done = bench(tokens.path, *QUICK, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert done.exit_code != 0
    assert not list(tmp_path.iterdir())


def test_a_model_that_fails_is_no_report(broken: Bundle, tmp_path: Path) -> None:
    done = bench(broken.path, *QUICK, "--json", tmp_path / "r.json")
    assert done.exit_code == 1
    assert "NaN" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_is_none_is_an_error_without_a_traceback(tmp_path: Path) -> None:
    done = bench(tmp_path / "nothing", *QUICK)
    assert done.exit_code == 1
    assert "is not a bundle" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("arguments", [["--rate", "0"], ["--steps", "5"], ["--idle-gap", "-1"], ["--threads", "0"]])
def test_wrong_usage_exits_with_2(tokens: Bundle, arguments: list[str]) -> None:
    assert bench(tokens.path, *arguments).exit_code == 2


def test_the_twins_leave_nothing_behind(decoder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(scratch))
    assert bench(decoder.path, *QUICK).exit_code == 0
    assert not list(scratch.iterdir())
