"""The runtimes that exist, and how to get each."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgemem.bundle import open_bundle
from edgemem.errors import RuntimeUnavailableError
from edgemem.runtimes.session import Session


@dataclass(frozen=True)
class Runtime:
    """One engine.

    Attributes:
        name: What users call it.
        package: The Python package it needs.
        extra: The extra of edgemem that installs that package.
        module: The module whose ``open_session(bundle, threads=, device=, guard=)`` opens a session.
    """

    name: str
    package: str
    extra: str
    module: str

    @property
    def installed(self) -> bool:
        """Whether its package is there; it is not imported."""
        return importlib.util.find_spec(self.package) is not None


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnxruntime", "onnxruntime", "onnxruntime", "edgemem.runtimes.ort"),
        Runtime("torch", "torch", "export", "edgemem.runtimes.torch_reference"),
    )
}
DEFAULT = "onnxruntime"
DEVICES = ("auto", "cpu", "cuda")


def open(
    path: str | Path, runtime: str = "auto", *, threads: int | None = None, device: str = "auto", guard: bool = False
) -> Session:
    """Open a bundle.

    Args:
        path: The bundle's folder.
        runtime: ``"onnxruntime"``, ``"torch"`` (the reference), or ``"auto"``: the fastest.
        threads: Threads that one operator may use; ``None`` leaves the choice to the engine.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA where it works.
        guard: Check inputs, outputs and new state for NaN and infinity in every call.

    Raises:
        BundleError: The bundle is missing, truncated, tampered with, or not ours.
        ContractError: A graph does not keep the bundle's contract.
        RuntimeUnavailableError: The runtime or the device does not exist or does not work here.
    """
    entry = RUNTIMES.get(DEFAULT if runtime == "auto" else runtime)
    if entry is None:
        raise RuntimeUnavailableError(f"no runtime {runtime!r}: there are auto, {', '.join(RUNTIMES)}.")
    if device not in DEVICES:
        raise RuntimeUnavailableError(f"no device {device!r}: there are {', '.join(DEVICES)}.")
    if threads is not None and threads < 1:
        raise RuntimeUnavailableError(f"threads must be 1 or more, got {threads}.")
    bundle = open_bundle(path)
    if not entry.installed:
        raise RuntimeUnavailableError(
            f"the runtime {entry.name} needs the package {entry.package}, which is not installed.",
            hint=f'pip install "edgemem[{entry.extra}]"',
        )
    opener: Callable[..., Session] = importlib.import_module(entry.module).open_session
    return opener(bundle, threads=threads, device=device, guard=guard)
