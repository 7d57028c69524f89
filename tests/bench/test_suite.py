"""The whole benchmark on small bundles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgemem.bench import suite
from edgemem.bench.sections.comparison import Comparison
from edgemem.bench.sections.deadline import Deadline
from edgemem.bench.sections.idle import IdleGap
from edgemem.bench.sections.memory import Memory
from edgemem.bench.sections.prefill import Prefill
from edgemem.bench.sections.steps import Steps
from edgemem.bench.sections.sweep import Positions
from edgemem.bench.subject import Options, Plan
from edgemem.bundle import Bundle
from tests.bench.tiny import write_tiny

PLAN = replace(Plan.quick(), steps=20, warmup=2, rounds=6, turn=2, prefill=16, positions=(0, 1_000, 1_000_000))


def test_the_whole_suite_runs_on_a_tiny_bundle(decoder: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    options = Options(threads=1, rate_hz=500.0, idle_gap_ms=0.1, quick=True)
    plan = replace(PLAN, paced_seconds=0.05)
    result = suite.run(decoder.path, options, plan, lambda *args: told.append(args))
    assert result.subject.fingerprint == decoder.fingerprint
    assert result[Steps].latency.count == 20
    assert result[Steps].latency.percentile_ms(50.0) is not None
    assert result[Steps].latency.percentile_ms(90.0) is None
    assert [p.position for p in result[Positions].points] == [0, 1_000, 1_000_000]
    assert result[Prefill].length == 16
    assert result[Deadline].steps == 25
    assert result[IdleGap].latency.count == plan.idle_steps
    assert result[Memory].state_bytes == decoder.contract.state_bytes
    assert result[Memory].peak_bytes >= result[Memory].resident_before_open_bytes > 0
    assert result[Comparison].rounds == 6
    assert result[Comparison].edgemem_p50_ms == result[Positions].points[1].p50_ms
    assert {b.key for b in result[Comparison].baselines if b.skipped is None} >= {"numpy_loop", "growing@1024"}
    assert result[Comparison].floor is not None
    assert {what for what, _, _ in told} >= {"opening", "steps", "prefill", "paced loop", "rounds"}
    assert all(0 <= done <= total for _, done, total in told)


def test_a_growing_bundle_is_swept_over_its_own_lengths(growing: Bundle) -> None:
    result = suite.run(growing.path, Options(threads=1, baselines=False), PLAN)
    assert [p.position for p in result[Positions].points] == list(PLAN.growing_positions)
    assert result[Positions].points[-1].state_bytes > result[Positions].points[0].state_bytes
    assert result.get(Comparison) is None
    assert result.skipped(Comparison) is None, "it was not asked for"
    assert result.get(Prefill) is None
    assert result.skipped(Prefill) == "the bundle takes one time step a call"


def test_a_model_of_limited_length_is_measured_within_it(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "limited", max_position=40)
    result = suite.run(bundle.path, Options(threads=1, baselines=False), replace(PLAN, steps=100, prefill=64))
    assert [point.position for point in result[Positions].points] == [0, 20, 35]
    assert result[Prefill].length == 40
    assert result[Steps].latency.count == 100
