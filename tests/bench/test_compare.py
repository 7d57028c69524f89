"""Two results side by side."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgemem.bench import stored
from edgemem.bench.compare import MARGIN, compare_results
from edgemem.bench.result import BenchResult
from edgemem.bench.sections.comparison import Comparison
from edgemem.bench.sections.environment import Environment
from edgemem.bench.sections.rates import Rates
from edgemem.bench.statistics import Interval
from edgemem.cli import main
from tests.bench.examples import example_result


def changed(result: BenchResult, kind: type[Any], **fields: Any) -> BenchResult:
    section = dataclasses.replace(result[kind], **fields)
    return dataclasses.replace(result, outcomes={**result.outcomes, kind: section})


def with_step(result: BenchResult, factor: float, speed: float = 1.0) -> BenchResult:
    """A build whose step takes ``factor`` times as long, on a machine that is ``speed`` times as fast."""
    comparison = result[Comparison]
    assert comparison.floor is not None
    over = comparison.floor.step_over_floor
    floor = dataclasses.replace(
        comparison.floor, p50_ms=comparison.floor.p50_ms / speed, step_over_floor=over.over(1 / factor)
    )
    rows = [dataclasses.replace(rate, step_ms=rate.step_ms * factor / speed) for rate in result[Rates].rows]
    return changed(changed(result, Comparison, floor=floor), Rates, rows=rows)


QUIET = example_result(extras=False)


def test_two_results_of_one_build_show_no_change_and_no_warning() -> None:
    found = compare_results(QUIET, QUIET)
    assert found.warnings == []
    assert not found.slower
    assert {change.ratio for change in found.changes} == {1.0}
    assert {"step", "prefill 512, 2 threads", "peak memory"} <= {change.new.name for change in found.changes}


def test_a_faster_machine_is_no_faster_build() -> None:
    found = compare_results(QUIET, with_step(QUIET, 1.0, speed=1.3))
    times = {change.new.name: change.ratio for change in found.changes if change.new.unit == "floor"}
    assert times["step"] == pytest.approx(1)
    assert times["decode 128 @ depth 4096, 2 threads"] == pytest.approx(1)


@pytest.mark.parametrize(("factor", "verdict"), [(1.3, "worse"), (1.1, ""), (0.7, "better")])
def test_only_what_lies_beyond_both_intervals_and_the_margin_is_a_change(factor: float, verdict: str) -> None:
    found = compare_results(QUIET, with_step(QUIET, factor))
    step = next(change for change in found.changes if change.new.name == "step")
    assert step.verdict == verdict
    assert found.slower is (verdict == "worse")
    assert MARGIN > 1


def test_figures_that_took_no_turns_with_the_floor_get_no_verdict() -> None:
    rows = [dataclasses.replace(rate, step_ms=3 * rate.step_ms) for rate in QUIET[Rates].rows]
    found = compare_results(QUIET, changed(QUIET, Rates, rows=rows))
    assert any(change.ratio == pytest.approx(3) for change in found.changes)
    assert {change.verdict for change in found.changes} == {""}


def test_a_ratio_of_few_rounds_decides_nothing() -> None:
    comparison = QUIET[Comparison]
    assert comparison.floor is not None
    floor = dataclasses.replace(comparison.floor, step_over_floor=Interval(9.0, None, None, 0.95, 3))
    assert not compare_results(QUIET, changed(QUIET, Comparison, floor=floor)).slower


@pytest.mark.parametrize(
    ("fields", "warning"),
    [
        ({"cpu": "another"}, "The runs differ in cpu: Cortex"),
        ({"threads": 4}, "The runs differ in threads: 2 then, 4 now."),
        ({"loaded": True, "others_cores": 1.5}, "The machine of the new run was loaded: other programs kept 1.5 cores"),
    ],
)
def test_other_machines_and_loads_are_warned_about(fields: dict[str, Any], warning: str) -> None:
    (found,) = compare_results(QUIET, changed(QUIET, Environment, **fields)).warnings
    assert found.startswith(warning)


@pytest.mark.parametrize(
    ("new", "code"),
    [
        (QUIET, 0),
        (with_step(QUIET, 1.3), 1),
        (changed(QUIET, Environment, loaded=True, others_cores=1.0), 3),
        (changed(with_step(QUIET, 1.3), Environment, board="another"), 3),
    ],
)
def test_the_exit_code_tells_slower_from_not_comparable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: BenchResult, code: int
) -> None:
    (tmp_path / "old.json").write_bytes(stored.encode(QUIET))
    monkeypatch.setattr("edgemem.cli.bench_command.run_suite", lambda *_: new)
    arguments = ["bench", "bundle", "--compare", str(tmp_path / "old.json")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    assert "Compared with the old result" in done.stdout
    as_json = CliRunner().invoke(main, [*arguments, "--json", "-"])
    assert (as_json.exit_code, json.loads(as_json.stdout)["format"]) == (code, "edgemem.bench")
