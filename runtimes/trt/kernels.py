"""Kernels that TensorRT-RTX compiled for this GPU, kept from one start of a program to the next.

An engine of TensorRT-RTX holds kernels in a form for many GPUs, which are compiled on the GPU that runs them. What was
compiled lies beside the engines that were built on first use; TensorRT-RTX itself refuses what another GPU, driver or
version left there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from edgemem.bundle import Bundle, GraphFile
from edgemem.runtimes.trt import cache
from edgemem.runtimes.trt.flavour import Flavour
from edgemem.runtimes.trt.options import BuildOptions


class KernelCache:
    """The compiled kernels of one engine.

    Args:
        bundle: The bundle.
        graph: The graph that the engine is of.
        flavour: TensorRT-RTX.
        options: What the engine was built for.
        announce: Called with a line where they cannot be kept.
    """

    def __init__(
        self, bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, announce: Callable[[str], None]
    ) -> None:
        self.path = cache.cache_folder() / f"{cache.key(bundle, graph, flavour, options)}.kernels"
        self._announce = announce
        self._runtime_cache: Any = None
        self._kept = b""

    def attach(self, config: Any) -> None:
        """Let the contexts that are made with an ``IRuntimeConfig`` take kernels from here, and leave new ones."""
        if self._runtime_cache is None:
            self._runtime_cache = config.create_runtime_cache()
            known = cache.read_checked(self.path)
            if known and self._runtime_cache.deserialize(known):
                self._kept = known
        config.set_runtime_cache(self._runtime_cache)

    def save(self) -> None:
        """Write what has been compiled since; where that fails the next start compiles it again."""
        if self._runtime_cache is None:
            return
        compiled = bytes(self._runtime_cache.serialize())
        if compiled == self._kept:
            return

        def write() -> None:
            cache.write_checked(self.path, compiled)
            self._kept = compiled

        cache.write_quietly(write, self._announce)
