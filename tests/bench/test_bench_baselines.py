"""A baseline is measured beside the bundle, or the result says why it is not."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_tiny

import edgemem
import edgemem.export
from edgemem.bench import baselines, comparison, suite
from edgemem.bench.baselines import FloorReady, NumpyLoop, Ready, Skipped
from edgemem.bench.measure import Loop
from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import EdgememError, MissingDependencyError
from tests.runtimes.stand_in_cuda import StandIn

PLAN = replace(suite.Plan.quick(), steps=20, warmup=2, rounds=6, turn=2, prefill=16, positions=(0, 1_000, 1_000_000))


def prepared(bundle: Bundle, folder: Path, stack: contextlib.ExitStack) -> dict[str, Ready | Skipped]:
    session = stack.enter_context(edgemem.open(bundle.path, threads=1))
    return {baseline.key: baseline for baseline in baselines.prepare(session, 1, folder, stack)}


def reason(baseline: Ready | Skipped) -> str:
    assert isinstance(baseline, Skipped)
    result = baseline.result()
    assert result.skipped == baseline.reason
    assert result.p50_ms is None
    assert result.ratio is None
    return baseline.reason


def test_a_module_of_the_users_own_has_no_twins(tokens: Bundle, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        found = prepared(tokens, tmp_path, stack)
        assert list(found) == ["numpy_loop", "torch", "growing"]
        assert all("no configuration to build it from" in reason(baseline) for baseline in found.values())


def test_the_hand_written_loop_computes_what_the_stream_computes(decoder: Bundle, tmp_path: Path) -> None:
    sealed = open_bundle(edgemem.export.sealed_twin(decoder, tmp_path / "sealed"))
    hand_written = NumpyLoop(sealed, threads=1)
    with edgemem.open(sealed.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        for step in range(12):
            loop.step()
            hand_written.step()
            np.testing.assert_array_equal(hand_written.output, loop.output, err_msg=f"step {step}")
            loop.choose()
            hand_written.choose()
        assert hand_written._feeds["past.position"].tolist() == [12]


def test_the_hand_written_loop_refuses_a_graph_that_is_not_sealed(tokens: Bundle) -> None:
    with pytest.raises(EdgememError, match=r"whole numpy arrays in and out: 0\.ring\.k"):
        NumpyLoop(tokens, threads=1)


def test_the_growing_cache_is_measured_at_several_lengths(decoder: Bundle, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        growing = prepared(decoder, tmp_path, stack)["growing"]
        assert isinstance(growing, Ready)
        assert growing.positions == baselines.GROWING_POSITIONS
        assert [c.name for c in growing.contenders] == [f"growing@{p}" for p in growing.positions]
        for contender in growing.contenders:
            contender.prepare()
            contender.step()


def test_the_growing_cache_stops_where_its_bytes_become_too_many(
    decoder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "GROWING_LIMIT_BYTES", 32 * 1_024 + 32)
    with contextlib.ExitStack() as stack:
        growing = prepared(decoder, tmp_path, stack)["growing"]
        assert isinstance(growing, Ready)
        assert growing.positions == (16, 256, 1_024)


def test_a_bundle_that_grows_itself_is_not_compared_with_its_like(growing: Bundle, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        assert reason(prepared(growing, tmp_path, stack)["growing"]) == "the bundle has one itself"


def test_an_export_that_fails_is_the_reason(decoder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bundle: Bundle, out: Path) -> Path:
        raise MissingDependencyError("torch is not installed.", hint='pip install "edgemem[export]"')

    monkeypatch.setattr(edgemem.export, "sealed_twin", fail)
    with contextlib.ExitStack() as stack:
        found = prepared(decoder, tmp_path, stack)
        assert reason(found["numpy_loop"]) == 'torch is not installed. pip install "edgemem[export]"'
        assert isinstance(found["growing"], Ready)


def test_an_exporter_that_cannot_be_imported_is_the_reason(
    decoder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "edgemem.export", None)
    with contextlib.ExitStack() as stack:
        found = prepared(decoder, tmp_path, stack)
        assert "edgemem.export" in reason(found["numpy_loop"])
        assert "edgemem.export" in reason(found["growing"])


def test_nothing_is_loaded_that_the_memory_cannot_hold(
    decoder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "available_bytes", lambda: 1 << 20)
    with contextlib.ExitStack() as stack:
        assert all("1 MiB are free" in reason(b) for b in prepared(decoder, tmp_path, stack).values())
        floor = baselines.prepare_floor(decoder, 1, stack)
        assert isinstance(floor, Skipped)
        assert "1 MiB are free" in floor.reason


def test_the_floor_says_which_way_could_not_be_tried(tokens: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with contextlib.ExitStack() as stack:
        floor = baselines.prepare_floor(tokens, None, stack)
        assert isinstance(floor, FloorReady)
        assert [c.name for c in floor.contenders] == ["floor:numpy"]
        assert "onnx is not installed" in floor.skipped["onnxruntime"]


def ns(*medians: int) -> np.ndarray:
    return np.array([[m, m] for m in medians], dtype=np.int64)


def test_a_comparison_pairs_the_rounds_and_takes_the_fastest_floor(decoder: Bundle, tmp_path: Path) -> None:
    own = ns(100, 200, 400, 100, 100, 100)
    samples = {"edgemem@1000": own, "numpy_loop": own * 3, "floor:numpy": own // 2, "floor:onnxruntime": own // 4}
    with contextlib.ExitStack() as stack:
        found = prepared(decoder, tmp_path, stack)
        floor = baselines.prepare_floor(decoder, 1, stack)
        growing = found["growing"]
        assert isinstance(growing, Ready)
        samples |= {c.name: own * (i + 1) for i, c in enumerate(growing.contenders)}
        samples["torch"] = own
        made = comparison.compare(list(found.values()), floor, samples, "edgemem@1000", (0, 1_000_000))
    assert made.edgemem_p50_ms == 100 / 1e6
    assert made.edgemem_position == 1_000
    by_key = {b.key: b for b in made.baselines}
    assert by_key["numpy_loop"].ratio is not None
    assert by_key["numpy_loop"].ratio.value == 3.0
    assert by_key["growing@1024"].ratio is not None
    assert by_key["growing@1024"].ratio.value == 3.0
    assert by_key["growing@1024"].name == "growing KV cache at 1 024"
    assert made.floor is not None
    assert made.floor.method == "onnxruntime"
    assert made.floor.step_over_floor.value == 4.0
    assert made.floor.gigabytes_per_second == pytest.approx(made.floor.weight_bytes / 25)
    assert made.growing is not None
    assert [p.position for p in made.growing.points] == list(baselines.GROWING_POSITIONS)
    assert {p.position: p.state_bytes for p in made.growing_state}[1_000_000] == 32 * 1_000_000 + 32


def test_the_whole_suite_runs_on_a_tiny_bundle(decoder: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    options = suite.Options(threads=1, rate_hz=500.0, idle_gap_ms=0.1, quick=True)
    plan = replace(PLAN, paced_seconds=0.05)
    result = suite.run(decoder.path, options, plan, lambda *args: told.append(args))
    assert result.subject.fingerprint == decoder.fingerprint
    assert result.steps.latency.count == 20
    assert result.steps.latency.percentile_ms(50.0) is not None
    assert result.steps.latency.percentile_ms(90.0) is None
    assert [p.position for p in result.sweep.points] == [0, 1_000, 1_000_000]
    assert result.prefill is not None
    assert result.prefill.length == 16
    assert result.deadline is not None
    assert result.deadline.steps == 25
    assert result.idle is not None
    assert result.memory.state_bytes == decoder.contract.state_bytes
    assert result.memory.peak_bytes >= result.memory.resident_before_open_bytes > 0
    assert result.comparison is not None
    assert result.comparison.rounds == 6
    assert result.comparison.edgemem_p50_ms == result.sweep.points[1].p50_ms
    assert {b.key for b in result.comparison.baselines if b.skipped is None} >= {"numpy_loop", "growing@1024"}
    assert result.comparison.floor is not None
    assert {what for what, _, _ in told} >= {"opening", "steps", "prefill", "paced loop", "rounds"}
    assert all(0 <= done <= total for _, done, total in told)


def test_a_growing_bundle_is_swept_over_its_own_lengths(growing: Bundle) -> None:
    result = suite.run(growing.path, suite.Options(threads=1, baselines=False), PLAN)
    assert [p.position for p in result.sweep.points] == list(PLAN.growing_positions)
    assert result.sweep.points[-1].state_bytes > result.sweep.points[0].state_bytes
    assert result.comparison is None
    assert result.prefill is None
    assert result.prefill_skipped is not None


def test_a_leak_shows_as_growth_of_resident_memory(tokens: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    leaked: list[bytes] = []
    choose = Loop.choose

    def leak(loop: Loop) -> None:
        choose(loop)
        leaked.append(bytes(20_000))

    monkeypatch.setattr(Loop, "choose", leak)
    before, grown = suite.resident_growth(tokens.path, 2_000, threads=1)
    assert before > 0
    assert grown > 20 << 20


def test_on_a_gpu_the_floor_is_the_weights_bytes_at_the_speed_of_a_copy(
    decoder: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn(limit=1 << 29))
    with edgemem.open(decoder.path, runtime="onnxruntime", device="cpu") as session:
        floor = baselines.prepare_device_floor(session)
    assert isinstance(floor, FloorReady)
    (contender,) = floor.contenders
    moved = floor.moved_bytes[contender.name]
    assert moved % (2 << 26) == 0, "a block of 64 MiB, read and written"
    own = np.full((6, 5), 1_000, dtype=np.int64)
    samples = {contender.name: np.full((6, 5), moved, dtype=np.int64), "edgemem": own}
    # One nanosecond a byte: the weights take as many nanoseconds as they have bytes.
    result = comparison.compare([], floor, samples, "edgemem", ()).floor
    assert result is not None
    assert result.p50_ms * 1e6 == pytest.approx(floor.reads.nbytes)
    assert result.gigabytes_per_second == pytest.approx(1.0)
    assert result.step_over_floor.value == pytest.approx(1_000 / floor.reads.nbytes)


def test_without_cuda_there_is_no_such_floor_and_the_reason_is_told(
    decoder: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with edgemem.open(decoder.path, runtime="onnxruntime", device="cpu") as session:
        floor = baselines.prepare_device_floor(session)
    assert isinstance(floor, Skipped)
    assert "cuda.bindings.runtime cannot be imported" in floor.reason


def test_a_model_of_limited_length_is_measured_within_it(tmp_path: Path) -> None:
    bundle = write_tiny(tmp_path / "limited", max_position=40)
    result = suite.run(bundle.path, suite.Options(threads=1, baselines=False), replace(PLAN, steps=100, prefill=64))
    assert [point.position for point in result.sweep.points] == [0, 20, 35]
    assert result.prefill is not None
    assert result.prefill.length == 40
    assert result.steps.latency.count == 100
