"""A comparison pairs the rounds, and has a reason for what was not measured."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.bench import baselines
from edgemem.bench.baselines import Ready, Skipped
from edgemem.bench.floor import prepare_floor
from edgemem.bench.sections.comparison import Comparison, compare
from edgemem.bundle import Bundle
from tests.bench.examples import example_result

SKIPPED = Skipped("torch", "torch, eager", "runtime torch", "no torch")


def ns(*medians: int) -> np.ndarray:
    return np.array([[m, m] for m in medians], dtype=np.int64)


def test_a_comparison_pairs_the_rounds_and_takes_the_fastest_floor(decoder: Bundle, tmp_path: Path) -> None:
    own = ns(100, 200, 400, 100, 100, 100)
    samples = {"edgemem@1000": own, "numpy_loop": own * 3, "floor:numpy": own // 2, "floor:onnxruntime": own // 4}
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(edgemem.open(decoder.path, threads=1))
        found = baselines.prepare(session, 1, tmp_path, stack)
        floor = prepare_floor(decoder, 1, stack)
        growing = next(baseline for baseline in found if baseline.key == "growing")
        assert isinstance(growing, Ready)
        samples |= {c.name: own * (i + 1) for i, c in enumerate(growing.contenders)}
        samples["torch"] = own
        made = compare(found, floor, samples, "edgemem@1000", (0, 1_000_000))
    assert made.edgemem_p50_ms == 100 / 1e6
    assert made.edgemem_position == 1_000
    by_key = {b.key: b for b in made.baselines}
    assert by_key["numpy_loop"].ratio is not None
    assert by_key["numpy_loop"].ratio.value == 3.0
    assert by_key["growing@1024"].ratio is not None
    assert by_key["growing@1024"].ratio.value == 3.0
    assert by_key["growing@1024"].name == "growing KV cache at 1,024"
    assert made.floor is not None
    assert made.floor.method == "onnxruntime"
    assert made.floor.step_over_floor.value == 4.0
    assert made.floor.gigabytes_per_second == pytest.approx(made.floor.weight_bytes / 25)
    assert made.growing is not None
    assert [p.position for p in made.growing.points] == list(baselines.GROWING_POSITIONS)
    assert {p.position: p.state_bytes for p in made.growing_state}[1_000_000] == 32 * 1_000_000 + 32


def test_what_was_skipped_for_one_reason_is_said_once() -> None:
    comparison = example_result()[Comparison]
    skipped = [dataclasses.replace(b, p50_ms=None, ratio=None, skipped="no torch.") for b in comparison.baselines]
    notes = dataclasses.replace(comparison, baselines=skipped, floor=None, floor_skipped="empty").skipped_notes()
    assert len(notes) == 2
    assert notes[0] == "Not measured: floor. Reason: empty."
    assert notes[1].endswith("growing KV cache at 16,384. Reason: no torch.")


def test_a_skipped_baseline_has_its_reason_and_no_figures() -> None:
    made = compare([SKIPPED], SKIPPED, {"edgemem": ns(100, 200)}, "edgemem", ())
    (baseline,) = made.baselines
    assert (baseline.skipped, baseline.p50_ms, baseline.ratio) == ("no torch", None, None)
    assert (made.floor, made.floor_skipped, made.edgemem_position) == (None, "no torch", None)
