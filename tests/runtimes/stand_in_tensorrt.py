"""A stand-in for ``tensorrt`` and ``tensorrt_rtx`` whose engines compute: a plan names an ONNX file, and a run hands
that file to ONNX Runtime on the CPU, which reads and writes the addresses that were bound.

A run is queued in its CUDA stream, with the shapes and addresses of the moment, or recorded where that is captured.
What TensorRT would not allow is refused: a shape outside the profile, an unaligned or missing address, an output that
overlaps an input or leaves its allocation, a capture of a context that has not run before, or of one that keeps a graph
of its own.
"""

from __future__ import annotations

import enum
import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime

from edgemem.bundle import Bundle, GraphFile
from edgemem.contract import OUTPUT_INDICES, Contract
from edgemem.dtypes import decode_bfloat16, element_type, numpy_dtype
from edgemem.runtimes.trt import sidecar
from edgemem.runtimes.trt.builder import Built
from edgemem.runtimes.trt.engine import shipped_folder
from edgemem.runtimes.trt.flavour import load_flavour
from edgemem.runtimes.trt.io import TOP_INDICES, TOP_VALUES, expected_io
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.profiles import profiles
from tests.runtimes.stand_in_cuda import CudaError, StandIn

_DTYPES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "bool": "BOOL",
}
_BFLOAT16 = 16

DataType = enum.Enum("DataType", list(_DTYPES.values()))
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
Strategy = enum.Enum("ExecutionContextAllocationStrategy", ["STATIC", "ON_PROFILE_CHANGE"])
GraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class StandInTensorrt(ModuleType):
    """The module.

    Attributes:
        contexts: Every execution context that was made.
        context_limit: Contexts that may exist before one is refused.
        uncapturable: Whether the engines cannot be captured at all.
    """

    __version__ = "10.13.0"
    ExecutionContextAllocationStrategy = Strategy
    TensorIOMode = TensorIOMode
    ILogger = ILogger

    def __init__(self, name: str, cuda: StandIn) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.cuda = cuda
        self.contexts: list[Context] = []
        self.context_limit = 1_000
        self.uncapturable = False
        self.compilations = 0
        self.driver = "580.1"
        if name == "tensorrt_rtx":
            self.CudaGraphStrategy = GraphStrategy

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self, logger)


class Runtime:
    def __init__(self, module: StandInTensorrt, logger: Any) -> None:
        self.module, self.logger = module, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            return Engine(self.module, self.logger, json.loads(plan))
        except ValueError:
            self.logger.log(ILogger.ERROR, "the plan is not one")
            return None


class Engine:
    def __init__(self, module: StandInTensorrt, logger: Any, facts: dict[str, Any]) -> None:
        self.module, self.logger = module, logger
        self.name = facts["name"]
        self.contract = Contract.from_json(facts["contract"])
        self.top_k = facts["top_k"]
        graph = GraphFile(*facts["graph"])
        self._io = {tensor.name: tensor for tensor in expected_io(self.contract, graph, self.top_k)}
        options = BuildOptions(max_batch=facts["max_batch"])
        self.profiles = profiles(self.contract, graph, options)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self.computer = onnxruntime.InferenceSession(facts["onnx"], settings, providers=["CPUExecutionProvider"])

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if self._io[name].is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[_DTYPES[self._io[name].dtype.split(" or ")[0]]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._io[name].shape

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        shapes = self.profiles[profile][name]
        return [shapes.smallest, shapes.usual, shapes.largest]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return 4096 * (profile + 1)

    def create_runtime_config(self) -> RuntimeConfig:
        assert self.module.__name__ == "tensorrt_rtx", "classic TensorRT has no runtime configuration"
        return RuntimeConfig(self.module)

    def create_execution_context(self, how: Any) -> Context | None:
        assert not self.module.cuda.forbids_allocation(), "a context allocates, which a capture forbids"
        if len(self.module.contexts) >= self.module.context_limit:
            self.logger.log(ILogger.ERROR, "out of memory")
            return None
        if isinstance(how, RuntimeConfig) and how.cache is not None and self.name not in how.cache.compiled:
            self.module.compilations += 1
            how.cache.compiled.add(self.name)
        own_graph = isinstance(how, RuntimeConfig) and how.cuda_graph_strategy == GraphStrategy.WHOLE_GRAPH_CAPTURE
        context = Context(self, own_graph)
        self.module.contexts.append(context)
        return context

    def inputs(self) -> list[str]:
        return [name for name, tensor in self._io.items() if tensor.is_input]

    def outputs(self) -> list[str]:
        return [name for name, tensor in self._io.items() if not tensor.is_input]

    def dtype(self, name: str) -> str:
        return self._io[name].dtype.split(" or ")[0]

    def output_shape(self, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        batch, time = shapes[self.contract.input.name][:2]
        wanted = shapes[OUTPUT_INDICES][0] if self.contract.output_indices else time
        if name == self.contract.output.name:
            return (batch, wanted, *self.contract.output.shape)
        if name in (TOP_VALUES, TOP_INDICES):
            return (batch, wanted, self.top_k)
        state = next(state for state in self.contract if state.output_name == name)
        if state.update == "append":
            return (batch, state.fixed_shape[0], time, state.fixed_shape[2])
        return (batch, *state.fixed_shape)


class RuntimeConfig:
    cuda_graph_strategy = GraphStrategy.DISABLED

    def __init__(self, module: StandInTensorrt) -> None:
        self.module = module
        self.cache: RuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Strategy) -> None:
        pass

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache(self.module)

    def set_runtime_cache(self, cache: RuntimeCache) -> None:
        self.cache = cache


class RuntimeCache:
    """Names of the engines whose kernels have been compiled, and of the driver they were compiled for."""

    def __init__(self, module: StandInTensorrt) -> None:
        self.module = module
        self.compiled: set[str] = set()

    def serialize(self) -> bytes:
        return json.dumps([self.module.driver, sorted(self.compiled)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        driver, compiled = json.loads(blob)
        if driver != self.module.driver:
            return False
        self.compiled = set(compiled)
        return True


class Context:
    """Attributes: runs, and the addresses of each, for tests to look at."""

    def __init__(self, engine: Engine, own_graph: bool) -> None:
        self.engine = engine
        self.own_graph = own_graph
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.ran_with: set[tuple[Any, ...]] = set()
        self.issued = 0

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.engine.module.cuda.streams
        self.profile = index
        self.shapes.clear()
        return index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if name not in self.engine.inputs():
            return False
        range_ = self.engine.profiles[self.profile][name]
        if len(shape) != len(range_.smallest) or not all(
            low <= size <= high for low, size, high in zip(range_.smallest, shape, range_.largest, strict=True)
        ):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if name not in self.engine.inputs() + self.engine.outputs() or address % 256:
            return False
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine, cuda = self.engine, self.engine.module.cuda
        missing = (set(engine.inputs()) - set(self.shapes)) | (
            set(engine.inputs() + engine.outputs()) - set(self.addresses)
        )
        if missing:
            return self._fail(f"{sorted(missing)} are not set")
        signature = tuple(sorted(self.shapes.items()))
        if cuda.capturing(stream) and (signature not in self.ran_with or self.own_graph or engine.module.uncapturable):
            cuda.spoil(stream)
            return self._fail("operation not permitted when stream is capturing")
        self.ran_with.add(signature)
        self.issued += 1
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        shapes |= {name: engine.output_shape(name, shapes) for name in engine.outputs()}
        spans = {name: (addresses[name], _nbytes(shapes[name], engine.dtype(name))) for name in shapes}
        if wrong := [name for name, span in spans.items() if not cuda.inside(*span)]:
            return self._fail(f"{wrong} leave their allocations")
        for out in engine.outputs():
            for other in shapes:
                if other != out and _overlap(spans[out], spans[other]):
                    return self._fail(f"{out} overlaps {other}")
        return cuda.enqueue(stream, lambda: self._compute(shapes, addresses)) == CudaError.cudaSuccess

    def _fail(self, why: str) -> bool:
        self.engine.logger.log(ILogger.ERROR, why)
        return False

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        engine = self.engine
        binding = engine.computer.io_binding()
        for name in engine.inputs():
            binding.bind_input(name, "cpu", 0, _element(engine.dtype(name)), shapes[name], addresses[name])
        for name in engine.outputs():
            if name not in (TOP_VALUES, TOP_INDICES):
                binding.bind_output(name, "cpu", 0, _element(engine.dtype(name)), shapes[name], addresses[name])
        engine.computer.run_with_iobinding(binding)
        if engine.top_k:
            output = engine.contract.output.name
            logits = self._array(output, shapes, addresses)
            order = np.argsort(-_values(logits, engine.dtype(output)), axis=-1, kind="stable")[..., : engine.top_k]
            self._array(TOP_VALUES, shapes, addresses)[...] = np.take_along_axis(logits, order, -1)
            self._array(TOP_INDICES, shapes, addresses)[...] = order

    def _array(self, name: str, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> np.ndarray:
        import ctypes

        dtype = numpy_dtype(self.engine.dtype(name))
        count = int(np.prod(shapes[name]))
        buffer = (ctypes.c_ubyte * (count * dtype.itemsize)).from_address(addresses[name])
        return np.frombuffer(buffer, dtype).reshape(shapes[name])


def put_engines(bundle: Bundle, name: str = "tensorrt", *, max_batch: int = 4, top_k: int = 0) -> None:
    """Put an engine of the stand-in for each graph into the bundle's folder, as ``edgemem build`` does."""
    flavour = load_flavour(name)
    options = BuildOptions(max_batch=max_batch, top_k=top_k)
    for graph in bundle.manifest.graphs:
        facts = {
            "name": bundle.contract.fingerprint,
            "contract": bundle.contract.to_json(),
            "graph": [graph.file, graph.min_time, graph.max_time],
            "onnx": str(Path(bundle.path, graph.file).absolute()),
            "top_k": top_k,
            "max_batch": max_batch,
        }
        built = Built(
            plan=json.dumps(facts).encode(),
            profiles=profiles(bundle.contract, graph, options),
            io=expected_io(bundle.contract, graph, top_k),
            timing_cache=b"",
        )
        folder = shipped_folder(bundle, flavour)
        folder.mkdir(parents=True, exist_ok=True)
        sidecar.save(folder, graph, built.plan, sidecar.describe(bundle, graph, flavour, options, built))


def _element(dtype: str) -> Any:
    return _BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)


def _values(array: np.ndarray, dtype: str) -> np.ndarray:
    return decode_bfloat16(array) if dtype == "bfloat16" else array.astype(np.float32)


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * element_type(dtype).nbytes


def _overlap(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]
