"""The runtimes that exist, and how to get each."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import EngineError, RuntimeUnavailableError
from edgemem.runtimes.session import Session


@dataclass(frozen=True)
class Runtime:
    """One engine.

    Attributes:
        name: What users call it.
        package: The Python package it needs.
        extra: The extra of edgemem that installs that package.
        opener: ``module:function``; the function, called ``(bundle, threads=, device=, guard=)``, opens a session.
    """

    name: str
    package: str
    extra: str
    opener: str

    @property
    def installed(self) -> bool:
        """Whether its package is there; it is not imported."""
        return importlib.util.find_spec(self.package) is not None

    def open(self, bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
        """A session; see :func:`open`."""
        if not self.installed:
            raise RuntimeUnavailableError(
                f"the runtime {self.name} needs the package {self.package}, which is not installed.",
                hint=f'pip install "edgemem[{self.extra}]"',
            )
        module, _, function = self.opener.partition(":")
        opener: Callable[..., Session] = getattr(importlib.import_module(module), function)
        return opener(bundle, threads=threads, device=device, guard=guard)


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnxruntime", "onnxruntime", "onnxruntime", "edgemem.runtimes.ort:open_session"),
        Runtime("onnxruntime-tensorrt", "onnxruntime", "gpu", "edgemem.runtimes.ort:open_tensorrt_session"),
        Runtime("tensorrt", "tensorrt", "tensorrt", "edgemem.runtimes.trt.session:open_session"),
        Runtime("tensorrt-rtx", "tensorrt_rtx", "rtx", "edgemem.runtimes.trt.session:open_rtx_session"),
        Runtime("torch", "torch", "export", "edgemem.runtimes.torch_reference:open_session"),
    )
}
ENGINE_FOLDERS = {"tensorrt": "local", "tensorrt-rtx": "rtx"}
"""Runtimes that run compiled engines, and the folder of a bundle's ``engines`` in which theirs lie."""
FALLBACK = "onnxruntime"
DEVICES = ("auto", "cpu", "cuda")
_LOG = logging.getLogger("edgemem.runtimes")


def open(
    path: str | Path, runtime: str = "auto", *, threads: int | None = None, device: str = "auto", guard: bool = False
) -> Session:
    """Open a bundle.

    Args:
        path: The bundle's folder.
        runtime: A name of :data:`RUNTIMES`, or ``"auto"``: TensorRT where the bundle carries engines for it and
            there is a CUDA device, else ONNX Runtime; see :func:`choose`.
        threads: Threads that one operator may use; ``None`` leaves the choice to the engine.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where it works.
        guard: Check inputs, outputs and new state for NaN and infinity in every call.

    Raises:
        BundleError: The bundle is missing, truncated, tampered with, or not ours.
        ContractError: A graph does not keep the bundle's contract.
        RuntimeUnavailableError: The runtime or the device does not exist or does not work here.
    """
    if runtime != "auto" and runtime not in RUNTIMES:
        raise RuntimeUnavailableError(f"no runtime {runtime!r}: there are auto, {', '.join(RUNTIMES)}.")
    if device not in DEVICES:
        raise RuntimeUnavailableError(f"no device {device!r}: there are {', '.join(DEVICES)}.")
    if threads is not None and threads < 1:
        raise RuntimeUnavailableError(f"threads must be 1 or more, got {threads}.")
    bundle = open_bundle(path)
    if runtime != "auto":
        return RUNTIMES[runtime].open(bundle, threads=threads, device=device, guard=guard)
    entry = RUNTIMES[choose(bundle, device)]
    try:
        return entry.open(bundle, threads=threads, device=device, guard=guard)
    except (EngineError, RuntimeUnavailableError) as error:
        if entry.name not in ENGINE_FOLDERS or not RUNTIMES[FALLBACK].installed:
            raise
        _LOG.warning("%s: %s Taking %s instead.", entry.name, error, FALLBACK)
    return RUNTIMES[FALLBACK].open(bundle, threads=threads, device=device, guard=guard)


def choose(bundle: Bundle, device: str) -> str:
    """The runtime that ``"auto"`` stands for.

    TensorRT where three things hold, asked in the order of what they cost: the bundle carries engines for it, which
    ``edgemem build`` put there; its package is installed; and the CUDA runtime finds a device. Everywhere else ONNX
    Runtime, so that no engine is built unasked, which takes minutes. Only where ONNX Runtime is not installed is
    TensorRT taken without an engine.

    Args:
        bundle: The bundle.
        device: As in :func:`open`.
    """
    engines = [RUNTIMES[name] for name in ENGINE_FOLDERS] if device != "cpu" and bundle.contract.has_fixed_size else []
    usable = [entry for entry in engines if entry.installed]
    carried = [entry for entry in usable if (bundle.path / "engines" / ENGINE_FOLDERS[entry.name]).is_dir()]
    candidates = carried or ([] if RUNTIMES[FALLBACK].installed else usable)
    return candidates[0].name if candidates and _cuda_works() else FALLBACK


def _cuda_works() -> bool:
    from edgemem.machine.cuda import probe_cuda

    return not probe_cuda().problem
