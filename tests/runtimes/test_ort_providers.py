"""What ONNX Runtime's CUDA and TensorRT providers are told. The session itself runs on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import RuntimeUnavailableError
from tests.runtimes import tiny
from tests.runtimes.stand_in_cuda import StandIn

PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[Any]]:
    """The providers and options of every session that is made on a machine that has all of them."""
    import onnxruntime

    told: list[list[Any]] = []

    class Recorder(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, options: Any, providers: list[Any], **more: Any) -> None:
            told.append(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [each if isinstance(each, str) else each[0] for each in told[-1]]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorder)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return told


def test_cuda_works_in_the_stream_of_the_arena_and_in_full_float32(told: list[Any], tokens_bundle: Bundle) -> None:
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda") as session:
        (cuda, options), cpu = told[0]
        assert (cuda, cpu) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        assert options["user_compute_stream"] == str(session.engine.memory.stream)  # type: ignore[attr-defined]
        assert options["use_tf32"] == "0"


def test_tensorrt_gets_a_cache_and_every_shape_that_will_come(told: list[Any], tmp_path: Path) -> None:
    bundle = tiny.save_bundle(tmp_path / "b", tiny.TOKENS, tiny.tokens_model(), ((1, 1), (2, tiny.CHUNK)))
    with edgemem.open(bundle.path, "onnxruntime-tensorrt") as session:
        assert (session.runtime, session.device) == ("onnxruntime-tensorrt", "cuda")
        for providers, (low, high) in zip(told, ((1, 1), (2, tiny.CHUNK)), strict=True):
            (name, options), (cuda, cuda_options), cpu = providers
            assert [name, cuda, cpu] == PROVIDERS
            assert options["user_compute_stream"] == cuda_options["user_compute_stream"]
            assert options["user_compute_stream"] == str(session.engine.memory.stream)  # type: ignore[attr-defined]
            assert options["trt_engine_cache_enable"] == "1"
            assert Path(options["trt_engine_cache_path"]).is_dir()
            assert Path(options["trt_engine_cache_path"]).is_relative_to(tmp_path)
            shapes = [
                dict(entry.split(":") for entry in options[f"trt_profile_{which}_shapes"].split(","))
                for which in ("min", "opt", "max")
            ]
            assert set(shapes[0]) == set(shapes[1]) == set(shapes[2]) == set(bundle.contract.graph_inputs)
            assert [each["tokens"] for each in shapes] == [f"1x{low}", f"1x{high}", f"1x{high}"]
            assert shapes[0]["past.0.window.k"] == shapes[2]["past.0.window.k"] == "1x2x4x3"
            assert shapes[2]["output_indices"] == str(high)


def test_tensorrt_that_is_not_there_is_refused(
    told: list[Any], tokens_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    with pytest.raises(RuntimeUnavailableError, match="runs on a CUDA device"):
        edgemem.open(tokens_bundle.path, "onnxruntime-tensorrt", device="cpu")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn(devices=0))
    with pytest.raises(RuntimeUnavailableError, match="reports no devices"):
        edgemem.open(tokens_bundle.path, "onnxruntime-tensorrt")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: PROVIDERS[1:])
    with pytest.raises(RuntimeUnavailableError, match="no TensorrtExecutionProvider, only CUDA"):
        edgemem.open(tokens_bundle.path, "onnxruntime-tensorrt")


def test_a_tensorrt_provider_that_does_not_start_is_an_error(
    told: list[Any], tokens_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: PROVIDERS[1:])
    with pytest.raises(RuntimeUnavailableError, match="could not start TensorrtExecutionProvider"):
        edgemem.open(tokens_bundle.path, "onnxruntime-tensorrt")


def test_cuda_libraries_of_pip_are_loaded_before_the_provider(
    told: list[Any], tokens_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[int] = []
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: before.append(len(told)), raising=False)
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda"):
        assert before == [0]
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cpu"):
        assert before == [0]
