"""The floor is measured in the fastest way that this machine has, or has a reason why not."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest

import edgemem
from edgemem.bench.baselines import Skipped
from edgemem.bench.floor import FloorReady, prepare_device_floor, prepare_floor
from edgemem.bundle import Bundle
from tests.runtimes.stand_in_cuda import StandIn


def test_the_floor_says_which_way_could_not_be_tried(tokens: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with contextlib.ExitStack() as stack:
        floor = prepare_floor(tokens, None, stack)
        assert isinstance(floor, FloorReady)
        assert [c.name for c in floor.contenders] == ["floor:numpy"]
        assert "onnx is not installed" in floor.skipped["onnxruntime"]


def test_on_a_gpu_the_floor_is_the_weights_bytes_at_the_speed_of_a_copy(
    decoder: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn(limit=1 << 29))
    with edgemem.open(decoder.path, runtime="onnxruntime", device="cpu") as session:
        floor = prepare_device_floor(session)
    assert isinstance(floor, FloorReady)
    (contender,) = floor.contenders
    moved = floor.moved_bytes[contender.name]
    assert moved % (2 << 26) == 0, "a block of 64 MiB, read and written"
    own = np.full((6, 5), 1_000, dtype=np.int64)
    samples = {contender.name: np.full((6, 5), moved, dtype=np.int64)}
    # One nanosecond a byte: the weights take as many nanoseconds as they have bytes.
    result = floor.floor(samples, own)
    assert result.p50_ms * 1e6 == pytest.approx(floor.reads.nbytes)
    assert result.gigabytes_per_second == pytest.approx(1.0)
    assert result.step_over_floor.value == pytest.approx(1_000 / floor.reads.nbytes)


def test_without_cuda_there_is_no_such_floor_and_the_reason_is_told(
    decoder: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with edgemem.open(decoder.path, runtime="onnxruntime", device="cpu") as session:
        floor = prepare_device_floor(session)
    assert isinstance(floor, Skipped)
    assert "cuda.bindings.runtime cannot be imported" in floor.reason
