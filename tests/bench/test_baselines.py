"""A baseline is ready to be measured, or has a reason why not."""

from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path

import pytest

import edgemem
from edgemem.adopt import AdoptOptions, adopt
from edgemem.bench import baselines
from edgemem.bench.baselines import Ready, Skipped
from edgemem.bench.floor import prepare_floor
from edgemem.bundle import Bundle
from edgemem.runtimes import native
from tests.adopt.models import RATE, write
from tests.bench.tiny import write_attention, write_tiny


def prepared(bundle: Bundle, folder: Path, stack: contextlib.ExitStack) -> dict[str, Ready | Skipped]:
    session = stack.enter_context(edgemem.open(bundle.path, threads=1))
    return {baseline.key: baseline for baseline in baselines.prepare(session, 1, folder, stack)}


def reason(baseline: Ready | Skipped) -> str:
    assert isinstance(baseline, Skipped)
    return baseline.reason


def test_a_module_of_ones_own_has_a_loop_by_hand_and_no_torch_and_no_growing_cache(
    tokens: Bundle, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        found = prepared(tokens, tmp_path, stack)
        assert list(found) == ["numpy_loop", "torch", "growing"]
        loop = found["numpy_loop"]
        assert isinstance(loop, Ready)
        assert loop.how.endswith("sealed graph")
        assert "torch runs only decoders of edgemem" in reason(found["torch"])
        assert "only decoders of edgemem and Hugging Face models" in reason(found["growing"])


@pytest.mark.skipif(native.library() is None, reason=native.why())
def test_a_hugging_face_model_has_a_growing_cache_with_the_bytes_of_its_position(tmp_path: Path) -> None:
    bundle = write_attention(tmp_path / "bundle", 64, max_length=64)
    with contextlib.ExitStack() as stack:
        growing = prepared(bundle, tmp_path, stack)["growing"]
        assert isinstance(growing, Ready)
        assert growing.positions == baselines.GROWING_POSITIONS
        assert growing.contract is not None
        assert growing.contract.state_bytes_at(65_536) == 65_536 * 2 * 8 * 4
        growing.contenders[-1].prepare()
        growing.contenders[-1].step()


@pytest.mark.skipif(native.library() is None, reason=native.why())
def test_a_hugging_face_model_whose_layers_bound_themselves_has_no_growing_cache(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        found = prepared(write_attention(tmp_path / "bundle"), tmp_path, stack)
        assert reason(found["growing"]).startswith("no layer of the model keeps its whole past")


def test_a_loop_that_computes_something_else_is_not_timed(
    tokens: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "sealed", lambda bundle, folder: write_tiny(folder, "sealed", bias=0.5))
    with contextlib.ExitStack() as stack:
        found = reason(prepared(tokens, tmp_path, stack)["numpy_loop"])
        assert re.fullmatch(
            r"its outputs differ from the bundle's by [\d.]+ of their spread, and 0.001 is rounding", found
        )


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


def test_what_is_not_installed_is_the_reason_with_its_hint(
    decoder: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    monkeypatch.setitem(sys.modules, "edgemem.export", None)
    with contextlib.ExitStack() as stack:
        found = prepared(decoder, tmp_path, stack)
        hint = 'pip install "edgemem-toolkit[export]"'
        assert reason(found["numpy_loop"]) == f"onnx_ir is not installed. {hint}"
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
