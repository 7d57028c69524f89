"""A stand-in for ``tensorrt`` and ``tensorrt_rtx`` whose engines compute with ONNX Runtime on the addresses given.

A run is queued in its CUDA stream, or recorded where that is captured. What TensorRT forbids is refused: a shape
outside the profile, an unaligned or missing address, an output that overlaps another tensor or leaves its allocation, a
capture of a context that has not run before, or of one that keeps its own graph.
"""

from __future__ import annotations

import enum
import json
import pickle
from dataclasses import astuple
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from edgemem.contract import OUTPUT_INDICES, Sizes
from edgemem.dtypes import decode_bfloat16, element_type
from edgemem.runtimes.trt.io import TOP_INDICES, TOP_VALUES, _outputs, _sizes
from edgemem.runtimes.trt.profiles import profiles
from tests.runtimes.stand_in_cuda import StandIn

Mode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])


class StandInTensorrt(ModuleType):
    """The module; ``contexts`` are those that were made, and ``uncapturable`` engines cannot be captured at all."""

    __version__, TensorIOMode = "10.13.0", Mode
    ExecutionContextAllocationStrategy = enum.Enum("ExecutionContextAllocationStrategy", ["ON_PROFILE_CHANGE"])
    CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])
    ILogger = type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2})

    def __init__(self, name: str, cuda: StandIn) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.cuda, self.driver = cuda, "580.1"
        self.contexts, self.context_limit, self.compilations, self.uncapturable = list[Context](), 1_000, 0, False
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: Engine(self, logger, plan))


class Engine:
    """A plan is a contract, one of its graphs, the path of an ONNX file, and ``BuildOptions``, pickled."""

    def __init__(self, module: StandInTensorrt, logger: Any, plan: bytes) -> None:
        contract, graph, onnx, options = pickle.loads(plan)
        self.module, self.logger, self.contract, self.top_k = module, logger, contract, options.top_k
        self.name, self.profiles = contract.fingerprint, profiles(contract, graph, options)
        self.inputs = {tensor.name: tensor for tensor in contract.inputs(graph)}
        self.outputs = {tensor.name: tensor for tensor in _outputs(contract, graph, self.top_k)}
        self.tensors = tensors = self.inputs | self.outputs
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self.computer = onnxruntime.InferenceSession(onnx, settings, providers=["CPUExecutionProvider"])
        self.num_io_tensors, self.get_tensor_name = len(tensors), list(tensors).__getitem__
        self.get_tensor_shape = lambda name: _sizes(tensors[name])
        self.get_tensor_mode = lambda name: Mode.INPUT if name in self.inputs else Mode.OUTPUT
        self.get_tensor_dtype = lambda name: SimpleNamespace(name=element_type(tensors[name].dtype).tensorrt)
        self.is_shape_inference_io = lambda name: False
        self.get_device_memory_size_for_profile_v2 = lambda profile: 4096 * (profile + 1)
        self.get_tensor_profile_shape = lambda name, profile: astuple(self.profiles[profile][name])

    def create_runtime_config(self) -> Any:
        assert self.module.__name__ == "tensorrt_rtx", "classic TensorRT has no runtime configuration"
        config = SimpleNamespace(cache=None, create_runtime_cache=lambda: RuntimeCache(self.module))
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        config.set_execution_context_allocation_strategy = lambda strategy: None
        return config

    def create_execution_context(self, how: Any) -> Context | None:
        module = self.module
        assert not module.cuda.forbids_allocation(), "a context allocates, which a capture forbids"
        if len(module.contexts) >= module.context_limit:
            self.logger.log(module.ILogger.ERROR, "out of memory")
            return None
        cache = getattr(how, "cache", None)
        if cache is not None and self.name not in cache.compiled:
            module.compilations += 1
            cache.compiled.add(self.name)
        own_graph = getattr(how, "cuda_graph_strategy", None) == module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        module.contexts.append(Context(self, own_graph))
        return module.contexts[-1]


class RuntimeCache:
    """Names of the engines whose kernels have been compiled, for one driver."""

    def __init__(self, module: StandInTensorrt) -> None:
        self.driver, self.compiled = module.driver, set[str]()

    def serialize(self) -> bytes:
        return json.dumps([self.driver, sorted(self.compiled)]).encode()

    def deserialize(self, blob: bytes) -> bool:
        driver, compiled = json.loads(blob)
        self.compiled = set(compiled if driver == self.driver else ())
        return bool(driver == self.driver)


class Context:
    """``issued`` counts runs; ``addresses`` are those of the next run."""

    def __init__(self, engine: Engine, own_graph: bool) -> None:
        self.engine, self.own_graph, self.profile, self.issued = engine, own_graph, 0, 0
        self.shapes, self.addresses, self.ran_with = dict[str, Any](), dict[str, int](), dict[str, Any]()

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream in self.engine.module.cuda.streams
        self.profile, self.shapes = index, {}
        return index < len(self.engine.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = np.array(self.engine.get_tensor_profile_shape(name, self.profile))
        self.shapes[name] = tuple(shape)
        return len(shape) == len(low) and bool(np.all((low <= shape) & (shape <= high)))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        engine, cuda = self.engine, self.engine.module.cuda
        if missing := (engine.inputs.keys() - self.shapes) | (engine.tensors.keys() - self.addresses):
            return self._fail(f"{sorted(missing)} are not set")
        may_be_captured = self.shapes == self.ran_with and not self.own_graph and not engine.module.uncapturable
        if cuda.capturing(stream) and not may_be_captured:
            cuda.streams[stream].spoilt = True
            return self._fail("operation not permitted when stream is capturing")
        self.ran_with, self.issued = dict(self.shapes), self.issued + 1
        arrays = self._arrays()
        for name, array in arrays.items():
            if cuda.home(array.ctypes.data, array.nbytes) != "Device":
                return self._fail(f"{name} leaves its allocation")
            if overlaps := [out for out in engine.outputs if out != name and np.may_share_memory(arrays[out], array)]:
                return self._fail(f"{overlaps} overlap {name}")
        cuda.enqueue(stream, lambda: self._compute(arrays))
        return True

    def _fail(self, why: str) -> bool:
        self.engine.logger.log(self.engine.module.ILogger.ERROR, why)
        return False

    def _arrays(self) -> dict[str, np.ndarray]:
        """Every tensor of the next run, in place."""
        spec, shape = self.engine.tensors[self.engine.contract.input.name], self.shapes[self.engine.contract.input.name]
        batch = 1 if spec.batch_axis is None else shape[spec.batch_axis]
        time = next(time for time in range(1, max(shape) + 1) if spec.shape(Sizes(batch, time)) == tuple(shape))
        sizes = Sizes(batch, time, *self.shapes.get(OUTPUT_INDICES, (time,)))
        arrays = {}
        for name, spec in self.engine.tensors.items():
            place = {"data": (self.addresses[name], False), "typestr": element_type(spec.dtype).numpy.str, "version": 3}
            arrays[name] = np.asarray(SimpleNamespace(__array_interface__=place | {"shape": spec.shape(sizes)}))
        return arrays

    def _compute(self, arrays: dict[str, np.ndarray]) -> None:
        engine, binding = self.engine, self.engine.computer.io_binding()
        for name in arrays.keys() - {TOP_VALUES, TOP_INDICES}:
            bind = binding.bind_input if name in engine.inputs else binding.bind_output
            kind = element_type(engine.tensors[name].dtype).for_ort
            bind(name, "cpu", 0, kind, arrays[name].shape, arrays[name].ctypes.data)
        engine.computer.run_with_iobinding(binding)
        if engine.top_k:
            logits = arrays[engine.contract.output.name]
            values = decode_bfloat16(logits) if engine.contract.output.dtype == "bfloat16" else logits
            order = np.argsort(-values, axis=-1, kind="stable")[..., : engine.top_k]
            arrays[TOP_VALUES][...] = np.take_along_axis(logits, order, -1)
            arrays[TOP_INDICES][...] = order
