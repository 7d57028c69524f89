"""A baseline is ready to be measured, or has a reason why not."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest

import edgemem
import edgemem.export
from edgemem.adopt import AdoptOptions, adopt
from edgemem.bench import baselines
from edgemem.bench.baselines import Ready, Skipped
from edgemem.bench.floor import prepare_floor
from edgemem.bundle import Bundle
from edgemem.errors import MissingDependencyError
from tests.adopt.models import RATE, write


def prepared(bundle: Bundle, folder: Path, stack: contextlib.ExitStack) -> dict[str, Ready | Skipped]:
    session = stack.enter_context(edgemem.open(bundle.path, threads=1))
    return {baseline.key: baseline for baseline in baselines.prepare(session, 1, folder, stack)}


def reason(baseline: Ready | Skipped) -> str:
    assert isinstance(baseline, Skipped)
    return baseline.reason


def test_a_custom_module_has_no_twins(tokens: Bundle, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        found = prepared(tokens, tmp_path, stack)
        assert list(found) == ["numpy_loop", "torch", "growing"]
        assert "whole states as numpy arrays: 0.ring.k" in reason(found.pop("numpy_loop"))
        assert all("no configuration to build it from" in reason(baseline) for baseline in found.values())


def test_an_adopted_bundle_is_compared_with_the_loop_by_hand(tmp_path: Path) -> None:
    options = AdoptOptions(fixed={"sr": 16000}, takes=4, context=2, steps=5)
    bundle = adopt(write(tmp_path / "rate.onnx", RATE), tmp_path / "bundle", options)
    with contextlib.ExitStack() as stack:
        loop = prepared(bundle, tmp_path, stack)["numpy_loop"]
        assert isinstance(loop, Ready)
        assert loop.how == "onnxruntime.InferenceSession.run(None, feeds), this graph, frames by numpy"
        loop.contenders[0].step()


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
        assert reason(prepared(growing, tmp_path, stack)["growing"]) == "the bundle has such a cache itself"


def test_an_export_that_fails_is_the_reason(decoder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bundle: Bundle, out: Path) -> Path:
        raise MissingDependencyError("torch is not installed.", hint='pip install "edgemem-toolkit[export]"')

    monkeypatch.setattr(edgemem.export, "sealed_twin", fail)
    with contextlib.ExitStack() as stack:
        found = prepared(decoder, tmp_path, stack)
        assert reason(found["numpy_loop"]) == 'torch is not installed. pip install "edgemem-toolkit[export]"'
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
        floor = prepare_floor(decoder, 1, stack)
        assert isinstance(floor, Skipped)
        assert "1 MiB are free" in floor.reason
