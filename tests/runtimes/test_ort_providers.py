"""What ONNX Runtime's CUDA and TensorRT providers are told, and how their runs are recorded.

The session itself runs on the CPU, or nothing runs: :class:`Runs` stands in for bindings and runs.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import RuntimeUnavailableError
from edgemem.runtimes.ort.engine import OrtSession
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


# Runs on a device.


class Runs:
    """Stands in for the runs of a session on a device: each is a kernel in the stream of the stand-in for CUDA.

    Attributes:
        log: What happened: ``bind NAME``, ``run``, ``recorded`` or ``synchronize``.
        on_host: The inputs that ONNX Runtime reads on the host.
        unrecordable: Whether loading fails where everything must be recorded.
        before_run: Called in every run.
    """

    def __init__(self, api: StandIn) -> None:
        self.api, self.log, self.on_host = api, list[str](), set[str]()
        self.unrecordable, self.before_run = False, None

    def session(self, plain: type) -> type:
        runs = self

        class Session(plain):  # type: ignore[misc, valid-type]
            def __init__(self, path: str, options: Any, providers: list[Any], **more: Any) -> None:
                (_, about), _ = providers
                if runs.unrecordable and about.get("enable_cuda_graph"):
                    raise RuntimeError("all compute graph nodes have not been partitioned")
                self.stream = int(about["user_compute_stream"])
                super().__init__(path, options, providers, **more)

            def get_input_memory_infos(self) -> list[Any]:
                return [
                    SimpleNamespace(name="Cpu" if tensor.name in runs.on_host else "Cuda")
                    for tensor in self.get_inputs()
                ]

            def io_binding(self) -> Any:
                bind = lambda name, *_: runs.log.append(f"bind {name}")  # noqa: E731
                return SimpleNamespace(bind_input=bind, bind_output=lambda *_: None)

            def run_with_iobinding(self, binding: Any, options: Any) -> None:
                assert options.get_run_config_entry("gpu_graph_id") == "-1"
                recorded = runs.api.capturing(self.stream)
                runs.log.append("recorded" if recorded else "run")
                if runs.before_run is not None:
                    runs.before_run()
                runs.api.enqueue(self.stream, lambda: None)
                if not recorded:
                    runs.api.cudaStreamSynchronize(self.stream)

        return Session


@pytest.fixture
def runs(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> Runs:
    import onnxruntime

    api = sys.modules["cuda.bindings.runtime"]
    assert isinstance(api, StandIn)
    runs = Runs(api)
    monkeypatch.setattr(onnxruntime, "InferenceSession", runs.session(onnxruntime.InferenceSession))
    return runs


def test_a_step_is_recorded_and_then_launched(runs: Runs, told: list[Any], tokens_bundle: Bundle) -> None:
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda") as session:
        assert told[-1][0][1]["enable_cuda_graph"] == "1"
        stream = session.stream()
        assert runs.log[-7:] == ["run", "run", "run", "run", "recorded", "recorded", "run"]
        runs.log.clear()
        with runs.api.counted() as calls:
            for token in range(4):
                stream.step(token)
        assert runs.log == []
        assert calls["cudaGraphLaunch"] == 4


def test_a_model_that_cannot_be_recorded_is_loaded_again(
    runs: Runs, told: list[Any], tokens_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.unrecordable = True
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda") as session:
        assert "enable_cuda_graph" not in told[-1][0][1]
        stream = session.stream()
        runs.log.clear()
        stream.step(1)
        assert runs.log == ["run"]
    assert capsys.readouterr().out == ""


def test_a_profile_is_of_plain_steps(runs: Runs, told: list[Any], tokens_bundle: Bundle, tmp_path: Path) -> None:
    with OrtSession(tokens_bundle, device="cuda", profile=tmp_path / "profile") as session:
        assert "enable_cuda_graph" not in told[-1][0][1]
        stream = session.stream()
        runs.log.clear()
        stream.step(1)
        assert runs.log == ["run"]


def test_what_is_read_on_the_host_is_bound_again_before_every_run(runs: Runs, tokens_bundle: Bundle) -> None:
    """ONNX Runtime copies such an input when it is bound, so a state would stay what it was at first."""
    runs.on_host = {"past.1.count.n", "position"}
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda") as session:
        stream = session.stream()
        runs.log.clear()
        with runs.api.counted() as calls:
            stream.step(1)
            stream.step(1)
        assert sorted(runs.log[:3]) == ["bind past.1.count.n", "bind position", "run"]
        assert runs.log[2] == "run"
        assert runs.log[3:] == runs.log[:3]
        assert calls["cudaStreamSynchronize"] >= 4, "the device had not finished what is read"


def test_an_old_onnxruntime_may_read_any_whole_number_on_the_host(
    runs: Runs, tokens_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    monkeypatch.delattr(onnxruntime.InferenceSession, "get_input_memory_infos")
    for base in onnxruntime.InferenceSession.__mro__[1:]:
        if "get_input_memory_infos" in vars(base):
            monkeypatch.delattr(base, "get_input_memory_infos")
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda") as session:
        stream = session.stream()
        runs.log.clear()
        stream.step(1)
    assert set(runs.log) == {"bind past.1.count.n", "bind position", "bind tokens", "bind output_indices", "run"}


def test_a_recording_that_fails_leaves_plain_steps(
    runs: Runs, tokens_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        if runs.log[-1] == "recorded":
            raise RuntimeError("operation not permitted when stream is capturing")

    runs.before_run = refuse
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda") as session:
        stream = session.stream()
        assert "CUDA graphs are off" in capsys.readouterr().err
        runs.log.clear()
        stream.step(1)
        assert runs.log == ["run"]


def test_nothing_is_recorded_once_another_thread_has_run_the_model(runs: Runs, tokens_bundle: Bundle) -> None:
    with edgemem.open(tokens_bundle.path, "onnxruntime", device="cuda") as session:
        in_thread(session.stream)
        assert "recorded" in runs.log
        runs.log.clear()
        stream = session.stream()
        assert "recorded" not in runs.log
        runs.log.clear()
        stream.step(1)
        assert runs.log == ["run"]


def in_thread(call: Callable[[], Any]) -> None:
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
