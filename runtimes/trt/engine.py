"""A loaded engine for a graph: shipped with the bundle, from the cache, or built now."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgemem.bundle import Bundle, GraphFile
from edgemem.errors import EngineError
from edgemem.files import replace_folder
from edgemem.runtimes.trt import cache, sidecar
from edgemem.runtimes.trt.builder import (
    Announce,
    Built,
    Progress,
    build_engine,
    known_compute_capabilities,
)
from edgemem.runtimes.trt.flavour import Flavour
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.sidecar import Sidecar

ENGINES = "engines"
"""Folder in a bundle where ``edgemem build`` puts engines, one folder for each target."""


def shipped_folder(bundle: Bundle, flavour: Flavour) -> Path:
    """Where the bundle carries engines of a flavour."""
    return bundle.path / ENGINES / ("rtx" if flavour.is_rtx else "local")


def open_engine(
    bundle: Bundle,
    graph: GraphFile,
    flavour: Flavour,
    *,
    options: BuildOptions | None = None,
    engines: Path | None = None,
    announce: Announce = lambda message: None,
    progress: Progress = lambda phase, done, total: None,
) -> Any:
    """A loaded engine for one graph of a bundle.

    An engine in ``engines``, or else in the bundle's own folder of engines, is taken or refused, never replaced: who
    put it there meant it. Without one the cache is asked, and the engine is built and cached where it has none.

    Args:
        bundle: The bundle, whose hashes have been checked.
        graph: Which of its graphs.
        flavour: The TensorRT to run with.
        options: What the engine must be able to do; by default batches of 1 and no top-k.
        engines: A folder that ``edgemem build --out`` wrote.
        announce: Called with a line for each stage.
        progress: Called with the builder's phases.

    Returns:
        An ``ICudaEngine``: see :mod:`edgemem.runtimes.trt.profiles` for what its profiles are.

    Raises:
        RuntimeUnavailableError: There is no CUDA device, or TensorRT does not start.
        EngineError: The engine is damaged or not for this machine, bundle or options, or cannot be built.
    """
    options = options or BuildOptions()
    flavour.cuda.require()
    folder = engines or shipped_folder(bundle, flavour)
    rebuild = sidecar.rebuild_command(bundle, flavour, options, engines)
    if engines is not None or os.path.lexists(sidecar.sidecar_path(folder, graph)):
        plan, found = sidecar.load(folder, bundle, graph, flavour, options, rebuild=rebuild)
        if not flavour.is_rtx and found.device != flavour.cuda.device:
            announce(
                f"{folder}: built on {found.device}, this is {flavour.cuda.device}: it may be slower than it could"
            )
        return _loaded(plan, bundle, graph, flavour, options, rebuild)
    return _cached_engine(bundle, graph, flavour, options, rebuild, announce, progress)


def _loaded(
    plan: bytes, bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, rebuild: str
) -> Any:
    engine, said = flavour.deserialize(plan)
    return sidecar.check_engine(engine, said, bundle, graph, flavour, options, rebuild=rebuild)


def build_to(
    folder: Path,
    bundle: Bundle,
    flavour: Flavour,
    options: BuildOptions,
    *,
    announce: Announce = lambda message: None,
    progress: Progress = lambda phase, done, total: None,
) -> list[Sidecar]:
    """Build every graph of a bundle into ``folder``, which is replaced only when all are built.

    Raises:
        EngineError: A graph cannot be built.
        EdgememError: The folder cannot be written, or holds something other than engines.
    """
    if folder.exists() and (not folder.is_dir() or any(not _is_ours(file) for file in folder.iterdir())):
        raise EngineError(
            f"{folder} exists and holds something other than engines, so it was not changed.",
            hint="Name another --out folder.",
        )
    made = []
    with replace_folder(folder) as new:
        for graph in bundle.manifest.graphs:
            built = _build(bundle, graph, flavour, options, announce, progress)
            made.append(sidecar.describe(bundle, graph, flavour, options, built))
            sidecar.save(new, graph, built.plan, made[-1])
    return made


def _is_ours(file: Path) -> bool:
    return file.is_file() and file.name.endswith((".plan", ".engine.json"))


def _cached_engine(
    bundle: Bundle,
    graph: GraphFile,
    flavour: Flavour,
    options: BuildOptions,
    rebuild: str,
    announce: Announce,
    progress: Progress,
) -> Any:
    options = _for_this_gpu(flavour, options)
    name = cache.key(bundle, graph, flavour, options)
    folder = cache.cache_folder() / name
    engine = _from_cache(folder, bundle, graph, flavour, options, announce)
    if engine is not None:
        return engine
    with cache.locked(name, announce) as writable:
        # Another process may have built it while this one waited.
        engine = _from_cache(folder, bundle, graph, flavour, options, announce) if writable else None
        if engine is not None:
            return engine
        announce("no engine for this GPU yet: building one, which takes minutes for a large model")
        built = _build(bundle, graph, flavour, options, announce, progress)
        if writable:

            def write() -> None:
                with replace_folder(folder) as new:
                    made = sidecar.describe(bundle, graph, flavour, options, built)
                    sidecar.save(new, graph, built.plan, made)

            cache.write_quietly(write, announce)
    return _loaded(built.plan, bundle, graph, flavour, options, rebuild)


def _for_this_gpu(flavour: Flavour, options: BuildOptions) -> BuildOptions:
    """What is built on first use need run on no other GPU; and TensorRT-RTX builds for Turing only when told to."""
    here = flavour.cuda.compute_capability
    if not flavour.is_rtx or options.compute_capabilities or here not in known_compute_capabilities(flavour):
        return options
    return replace(options, compute_capabilities=(here,))


def _from_cache(
    folder: Path, bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, announce: Announce
) -> Any:
    """The engine of a cache entry; ``None`` where there is none, or whatever is wrong with it: it is built again."""
    if not os.path.lexists(sidecar.sidecar_path(folder, graph)):
        return None
    try:
        plan, _ = sidecar.load(folder, bundle, graph, flavour, options, rebuild="")
        return _loaded(plan, bundle, graph, flavour, options, "")
    except EngineError as error:
        announce(f"the cached engine cannot be used: {error.message}")
        return None


def _build(
    bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, announce: Announce, progress: Progress
) -> Built:
    """Build, with what earlier builds learned of this GPU's kernels."""
    timings = cache.timing_path(flavour)
    known = b"" if flavour.is_rtx else cache.read_checked(timings)
    built = build_engine(bundle, graph, flavour, options, timing_cache=known, announce=announce, progress=progress)
    if not flavour.is_rtx and built.timing_cache:
        cache.write_quietly(lambda: cache.write_checked(timings, built.timing_cache), announce)
    return built
