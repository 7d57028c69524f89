"""A machine with a CUDA device and a TensorRT, both of them stand-ins that compute."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from edgemem.bundle import Bundle
from edgemem.runtimes.trt.session import RtxSession, TrtSession
from tests.runtimes.stand_in_cuda import StandIn
from tests.runtimes.stand_in_tensorrt import StandInTensorrt, put_engines

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


@dataclass
class Machine:
    """What the stand-ins show: calls, allocations, bytes moved, contexts."""

    cuda: StandIn
    tensorrt: StandInTensorrt

    def open(self, bundle: Bundle, *, max_batch: int = 4, top_k: int = 0, **options: Any) -> TrtSession:
        """A session over engines that are put into the bundle's folder first."""
        put_engines(bundle, self.tensorrt.__name__, max_batch=max_batch, top_k=top_k)
        session = TrtSession if self.tensorrt.__name__ == "tensorrt" else RtxSession
        return session(bundle, **options)


@contextlib.contextmanager
def machine(runtime: str = "tensorrt", **cuda_options: Any) -> Iterator[Machine]:
    """Both stand-ins in the place of the packages, and an empty cache. What was opened inside works on outside."""
    cuda = StandIn(**cuda_options)
    tensorrt = StandInTensorrt(PACKAGES[runtime], cuda)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="edgemem-cache-") as cache:
        patch.setenv("XDG_CACHE_HOME", cache)
        patch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
        patch.setitem(sys.modules, PACKAGES[runtime], tensorrt)
        yield Machine(cuda, tensorrt)
