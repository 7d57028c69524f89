"""The runtimes that exist, and how to open a bundle with each.

edgemem's own are listed here. Other packages add theirs through entry points (:mod:`edgemem.plugins`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from edgemem import plugins
from edgemem.bundle import Bundle, open_bundle
from edgemem.errors import EdgememError, RuntimeUnavailableError
from edgemem.machine.cuda import probe_cuda
from edgemem.machine.packages import how_to_get
from edgemem.runtimes.session import Session

Opener = Callable[..., Session]


@dataclass(frozen=True)
class Runtime:
    """One engine.

    Attributes:
        name: What users call it.
        package: The Python package it needs.
        opener: ``module:function``; the function, called ``(bundle, threads=, device=, guard=)``, opens a session.
        devices: The devices it can run on: ``"cpu"``, ``"cuda"``, or ``"auto"`` if edgemem does not know.
        engines: If it runs compiled engines, the folder inside a bundle's ``engines`` that holds them.
        plugin: The entry point that defines it; ``None`` for edgemem's own.
    """

    name: str
    package: str
    opener: str
    devices: tuple[str, ...] = ("auto",)
    engines: str = ""
    plugin: plugins.Plugin | None = None

    @property
    def installed(self) -> bool:
        """Whether its package is there; it is not imported."""
        return self.plugin is not None or importlib.util.find_spec(self.package) is not None

    @property
    def install_command(self) -> str:
        """The command that installs its package on this machine."""
        return how_to_get(self.package)

    def open(self, bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
        """A session; see :func:`open`.

        Raises:
            RuntimeUnavailableError: Its package is not installed, or does not work here.
            PluginError: Another package defines the runtime, and its entry point cannot be loaded.
        """
        if not self.installed:
            raise RuntimeUnavailableError(
                f"the runtime {self.name} needs the package {self.package}, which is not installed.",
                hint=self.install_command,
            )
        return self._load()(bundle, threads=threads, device=device, guard=guard)

    def _load(self) -> Opener:
        if self.plugin is None:
            module, _, function = self.opener.partition(":")
            opener: Opener = getattr(importlib.import_module(module), function)
            return opener
        opener = self.plugin.load()
        if not callable(opener):
            raise self.plugin.error("is not a function that opens a session.")
        return opener


_ALL, _GPU = ("cpu", "cuda"), ("cuda",)
_OWN: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime("onnxruntime", "onnxruntime", "edgemem.runtimes.ort.engine:open_session", _ALL),
        Runtime("onnxruntime-tensorrt", "onnxruntime", "edgemem.runtimes.ort.engine:open_tensorrt_session", _GPU),
        Runtime("tensorrt", "tensorrt", "edgemem.runtimes.trt.session:open_session", _GPU, "local"),
        Runtime("tensorrt-rtx", "tensorrt_rtx", "edgemem.runtimes.trt.session:open_rtx_session", _GPU, "rtx"),
        Runtime("torch", "torch", "edgemem.runtimes.torch_reference:open_session", _ALL),
    )
}
FALLBACK = _OWN["onnxruntime"]
DEVICES = ("auto", "cpu", "cuda")
_LOG = logging.getLogger("edgemem.runtimes")


def known_runtimes() -> dict[str, Runtime]:
    """Every runtime by name: edgemem's own, then those of other packages. Nothing is imported.

    An entry point cannot replace one of edgemem's own runtimes; it is ignored with a warning in the log.
    """
    found = dict(_OWN)
    for name, plugin in plugins.plugins(plugins.RUNTIMES).items():
        if name in _OWN:
            _LOG.warning("%s", plugin.error("has the name of a runtime of edgemem, and is ignored.").message)
            continue
        found[name] = Runtime(name, plugin.package, plugin.value, plugin=plugin)
    return found


def find_runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        RuntimeUnavailableError: No runtime has this name.
    """
    runtime = _OWN.get(name) or known_runtimes().get(name)
    if runtime is None:
        raise RuntimeUnavailableError(f"no runtime {name!r}: there are auto, {', '.join(known_runtimes())}.")
    return runtime


def open(
    path: str | Path | Bundle,
    runtime: str = "auto",
    *,
    threads: int | None = None,
    device: str = "auto",
    guard: bool = False,
) -> Session:
    """Open a bundle.

    Args:
        path: The bundle's folder, or the bundle if it is open already: its files are not hashed again.
        runtime: A name of :func:`known_runtimes`, or ``"auto"``: TensorRT if the bundle has engines for it and there
            is a CUDA device, else ONNX Runtime; see :func:`choose`.
        threads: Threads that one operator may use; ``None``: the engine chooses.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"``: CUDA if it works.
        guard: Check inputs, outputs and new state for NaN and infinity in every call.

    Raises:
        BundleError: The bundle is missing, truncated, tampered with, or not a bundle.
        ContractError: A graph does not keep the bundle's contract.
        RuntimeUnavailableError: The runtime or the device does not exist or does not work here.
        PluginError: The runtime belongs to another package, and its entry point cannot be loaded.
    """
    chosen = None if runtime == "auto" else find_runtime(runtime)
    if device not in DEVICES:
        raise RuntimeUnavailableError(f"no device {device!r}: there are {', '.join(DEVICES)}.")
    if threads is not None and threads < 1:
        raise RuntimeUnavailableError(f"threads must be 1 or more, got {threads}.")
    bundle = path if isinstance(path, Bundle) else open_bundle(path, weights=False)  # hashed while they are loaded
    start = partial(_start, bundle, threads=threads, device=device, guard=guard)
    if chosen is not None:
        return start(chosen)
    chosen = choose(bundle, device)
    try:
        return start(chosen)
    except EdgememError as error:
        if not chosen.engines or not FALLBACK.installed:
            raise
        _LOG.warning("%s: %s Using %s instead.", chosen.name, error, FALLBACK.name)
    return start(FALLBACK)


def _start(bundle: Bundle, runtime: Runtime, **options: Any) -> Session:
    """A session of a bundle whose files all have been hashed, whatever the runtime reads of them."""
    session = runtime.open(bundle, **options)
    try:
        bundle.check_rest()
    except EdgememError:
        session.close()
        raise
    return session


def choose(bundle: Bundle, device: str) -> Runtime:
    """The runtime that ``"auto"`` stands for.

    It is TensorRT if three things hold, checked in order of cost: the bundle has engines for it, which ``edgemem
    build`` put there; its package is installed; the CUDA runtime finds a device. Otherwise it is ONNX Runtime, because
    building an engine takes minutes and the user did not ask for it. TensorRT is used without an engine only if ONNX
    Runtime is not installed.

    Args:
        bundle: The bundle.
        device: As in :func:`open`.
    """
    compiled = [runtime for runtime in _OWN.values() if runtime.engines]
    if device == "cpu" or not bundle.contract.has_fixed_size:
        compiled = []
    usable = [runtime for runtime in compiled if runtime.installed]
    built = [runtime for runtime in usable if (bundle.path / "engines" / runtime.engines).is_dir()]
    candidates = built or ([] if FALLBACK.installed else usable)
    return candidates[0] if candidates and not probe_cuda().problem else FALLBACK
