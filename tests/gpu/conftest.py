"""Sessions on a real GPU. Without one, or without the runtime, everything here is skipped with the reason.

``EDGEMEM_GPU_STAND_IN=1`` runs these tests over the stand-ins instead, which shows that the tests themselves work.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import RuntimeUnavailableError
from edgemem.machine.cuda import probe_cuda
from edgemem.runtimes import Session
from edgemem.runtimes.cuda import CudaMemory
from edgemem.runtimes.ort.engine import OrtSession
from edgemem.runtimes.trt.builder import require_served
from edgemem.runtimes.trt.flavour import load_flavour
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.session import RtxSession, TrtSession

STAND_IN = os.environ.get("EDGEMEM_GPU_STAND_IN") == "1"
ENGINES = {"tensorrt": TrtSession, "tensorrt-rtx": RtxSession}
PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def pytest_configure(config: pytest.Config) -> None:
    """Beside an installed wheel there is no pyproject.toml that declares the mark."""
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU and its driver")


@dataclass
class Gpu:
    """Opens sessions of one runtime on the GPU; ``open(bundle, max_batch=, top_k=, cuda_graphs=, guard=)``."""

    runtime: str
    open: Callable[..., Session]


def _open_engine(runtime: str) -> Callable[..., Session]:
    def open_session(bundle: Bundle, *, max_batch: int = 2, top_k: int = 0, **options: Any) -> Session:
        return ENGINES[runtime](bundle, options=BuildOptions(max_batch=max_batch, top_k=top_k), **options)

    return open_session


def _open_onnxruntime(runtime: str) -> Callable[..., Session]:
    def open_session(bundle: Bundle, *, guard: bool = False, cuda_graphs: bool = True, **_: Any) -> Session:
        if runtime == "onnxruntime":
            return OrtSession(bundle, device="cuda", guard=guard, cuda_graphs=cuda_graphs)
        return edgemem.open(bundle.path, runtime, device="cuda", guard=guard)

    return open_session


def skip_unless_it_works(runtime: str) -> None:
    """Skip, with the reason, where the runtime cannot run on a GPU here."""
    if problem := probe_cuda().problem:
        pytest.skip(f"no CUDA device: {problem}")
    if runtime in ENGINES:
        try:
            require_served(load_flavour(PACKAGES[runtime]))
        except RuntimeUnavailableError as error:
            pytest.skip(f"{runtime}: {error.message}")
        return
    onnxruntime = pytest.importorskip("onnxruntime")
    provider = {"onnxruntime": "CUDAExecutionProvider", "onnxruntime-tensorrt": "TensorrtExecutionProvider"}[runtime]
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"{runtime}: this build has no {provider}")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Engines are built afresh, and thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session", params=[*ENGINES, "onnxruntime", "onnxruntime-tensorrt"])
def any_gpu(request: pytest.FixtureRequest, cache: Path) -> Iterator[Gpu]:
    """Every runtime that keeps its state on the device."""
    yield from _gpu(request.param)


@pytest.fixture(scope="session", params=[*ENGINES, "onnxruntime"])
def recording_gpu(request: pytest.FixtureRequest, cache: Path) -> Iterator[Gpu]:
    """The runtimes that record a step as a CUDA graph."""
    yield from _gpu(request.param)


@pytest.fixture(scope="session", params=list(ENGINES))
def gpu(request: pytest.FixtureRequest, cache: Path) -> Iterator[Gpu]:
    """TensorRT's runtimes alone."""
    yield from _gpu(request.param)


def _gpu(runtime: str) -> Iterator[Gpu]:
    if not STAND_IN:
        skip_unless_it_works(runtime)
        yield Gpu(runtime, _open_engine(runtime) if runtime in ENGINES else _open_onnxruntime(runtime))
        return
    from tests.runtimes.trt.machine import machine

    if runtime not in ENGINES:
        pytest.skip(f"{runtime}: nothing stands in for it")
    with machine(runtime) as here:
        yield Gpu(runtime, here.open)


def free_bytes() -> int:
    """Device memory that is free."""
    api = CudaMemory().api
    code, free, _ = api.cudaMemGetInfo()
    assert int(code) == 0
    return int(free)
