"""A machine with a CUDA device and TensorRT, both of which are stand-ins that compute."""

from __future__ import annotations

import contextlib
import pickle
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgemem.bundle import Bundle, GraphFile
from edgemem.runtimes.trt import engine
from edgemem.runtimes.trt.builder import Built
from edgemem.runtimes.trt.flavour import Flavour, load_flavour
from edgemem.runtimes.trt.io import expected_io
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.profiles import profiles
from edgemem.runtimes.trt.session import RtxSession, TrtSession
from tests.runtimes.stand_in_cuda import StandIn
from tests.runtimes.stand_in_tensorrt import StandInTensorrt

PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}


def build_engine(bundle: Bundle, graph: GraphFile, flavour: Flavour, options: BuildOptions, **_: Any) -> Built:
    """Takes the place of edgemem's: the plan names the ONNX file."""
    plan = pickle.dumps((bundle.contract, graph, str(Path(bundle.path, graph.file).absolute()), options))
    return Built(plan, expected_io(bundle.contract, graph, options.top_k), profiles(bundle.contract, graph, options))


@dataclass
class Machine:
    """What the stand-ins show: calls, allocations, bytes moved, contexts."""

    cuda: StandIn
    tensorrt: StandInTensorrt

    def open(self, bundle: Bundle, *, max_batch: int = 4, top_k: int = 0, **options: Any) -> TrtSession:
        """A session over engines that are first put into the bundle's folder, as ``edgemem build`` does."""
        flavour, how = load_flavour(self.tensorrt.__name__), BuildOptions(max_batch=max_batch, top_k=top_k)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "build_engine", build_engine)
            engine.build_to(engine.shipped_folder(bundle, flavour), bundle, flavour, how)
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
