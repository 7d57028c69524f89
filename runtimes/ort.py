"""ONNX Runtime, bound to an arena: a step writes the token, runs, and appends; it allocates nothing.

Every input and output of a graph is bound to an address in the stream's arena (:mod:`edgemem.runtimes.arena`). The
replaced states swap places after every call, so the bindings of a step exist twice, prepared once. A ring is bound as
an input at one address and changed there between two runs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgemem.bundle import Bundle, GraphFile
from edgemem.contract import Contract
from edgemem.dtypes import decode_bfloat16, element_type, numpy_dtype
from edgemem.errors import BundleError, EdgememError, RuntimeUnavailableError
from edgemem.machine import huge_pages
from edgemem.runtimes.arena import Arena, Place
from edgemem.runtimes.arena_stream import ArenaStream
from edgemem.runtimes.memory import Array, Block, HostMemory, Memory
from edgemem.runtimes.ort_graph import check_graph
from edgemem.runtimes.ort_import import import_onnxruntime
from edgemem.runtimes.session import Session, Stream

_CPU, _CUDA, _TENSORRT = (f"{name}ExecutionProvider" for name in ("CPU", "CUDA", "Tensorrt"))


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> OrtSession:
    """Load the bundle's graphs; see :func:`edgemem.open`."""
    return OrtSession(bundle, threads=threads, device=device, guard=guard)


def open_tensorrt_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> OrtSession:
    """Load the bundle's graphs into ONNX Runtime's TensorRT provider; see :func:`edgemem.open`."""
    return OrtTensorrtSession(bundle, threads=threads, device=device, guard=guard)


class OrtSession(Session):
    """A bundle loaded into ONNX Runtime.

    Args:
        bundle: The bundle.
        threads: Threads of one operator; ``None`` leaves them to the engine.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        guard: See :class:`~edgemem.runtimes.session.Session`.
        exact: Multiply quantised weights in floating point. By default the engine rounds what they are multiplied
            with to 8 bits too, which is several times faster.
        profile: Time every operator, into files whose names begin so; an engine's ``end_profiling()`` names its own.

    Attributes:
        memory: Where its streams' arenas lie.
        engines: The ``onnxruntime.InferenceSession`` of each graph file.
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        device: str = "auto",
        guard: bool = False,
        exact: bool = False,
        profile: Path | None = None,
    ) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise RuntimeUnavailableError(
                f"onnxruntime cannot be imported: {error}", hint='pip install "edgemem[onnxruntime]"'
            ) from error
        memory, first = self._choose(onnxruntime.get_available_providers(), device)
        super().__init__(bundle.contract, bundle, device=memory.device, guard=guard)
        self.memory = memory
        self.engines: dict[str, Any] = {}
        regions = huge_pages.anonymous_regions()
        for graph in bundle.manifest.graphs:
            providers = [*self._providers(memory, graph, first), _CPU]
            engine = _load(onnxruntime, bundle, graph, providers, threads, exact, profile)
            if engine.get_providers()[0] != first:
                if device == "cuda" or first == _TENSORRT:
                    raise _no_cuda(f"ONNX Runtime could not start {first}")
                self.memory, self.device, first = HostMemory(), "cpu", _CPU
                memory = self.memory
            check_graph(engine, bundle.contract, graph)
            self.engines[graph.file] = engine
        if memory.on_host:
            huge_pages.join_pages_since(regions)

    def _choose(self, available: list[str], device: str) -> tuple[Memory, str]:
        """The memory and the first provider for ``device``."""
        if device == "cpu" or (device == "auto" and _CUDA not in available):
            return HostMemory(), _CPU
        if _CUDA not in available:
            raise _no_cuda(f"this ONNX Runtime has no {_CUDA}, only {', '.join(available)}")
        from edgemem.runtimes.cuda import CudaMemory

        try:
            return CudaMemory(), _CUDA
        except RuntimeUnavailableError:
            if device == "cuda":
                raise
            return HostMemory(), _CPU

    def _providers(self, memory: Memory, graph: GraphFile, first: str) -> list[Any]:
        """The providers before the CPU's, with their options."""
        return [] if first == _CPU else [(_CUDA, cuda_options(memory))]

    def _new_stream(self, batch: int, initial: bool) -> Stream:
        if not self.contract.has_fixed_size:
            from edgemem.runtimes.ort_growing import GrowingStream

            return GrowingStream(self, batch)
        stream = OrtStream(self, batch)
        if initial:
            stream.reset()
        return stream

    def engine_for(self, time: int) -> Any:
        """The ``onnxruntime.InferenceSession`` that takes ``time`` steps in one call."""
        graph = self.bundle.graph_for(time)
        if graph is None:
            raise BundleError(f"no graph of the bundle takes {time} time steps.")
        return self.engines[graph.file]

    def close(self) -> None:
        """See :meth:`Session.close`."""
        super().close()
        self.engines.clear()


class OrtTensorrtSession(OrtSession):
    """A bundle loaded into ONNX Runtime's TensorRT provider, which builds its engines at the first start.

    The provider builds for the shapes it is told: one stream, 1 to the graph's most time steps. A larger batch makes it
    build again.
    """

    runtime = "onnxruntime-tensorrt"

    def _choose(self, available: list[str], device: str) -> tuple[Memory, str]:
        if device == "cpu":
            raise RuntimeUnavailableError(
                f"the runtime {self.runtime} runs on a CUDA device, device 'cpu' was asked for.",
                hint="Use runtime='onnxruntime'.",
            )
        if _TENSORRT not in available:
            raise _no_cuda(f"this ONNX Runtime has no {_TENSORRT}, only {', '.join(available)}")
        from edgemem.runtimes.cuda import CudaMemory

        return CudaMemory(), _TENSORRT

    def _providers(self, memory: Memory, graph: GraphFile, first: str) -> list[Any]:
        return [(_TENSORRT, tensorrt_options(self.bundle, graph, memory)), (_CUDA, cuda_options(memory))]


class OrtStream(ArenaStream):
    """A stream whose states all have a fixed size."""

    _session: OrtSession

    def __init__(self, session: OrtSession, batch: int) -> None:
        arena = Arena(session.memory, session.contract, batch, session.max_time)
        super().__init__(session, batch, arena)
        self._engine_for: Callable[[int], Any] = session.engine_for
        self._run: Callable[[Any], None] = session.engine_for(1).run_with_iobinding
        self._elements = _elements(session.contract, session.bundle.manifest.graphs[0])
        self._step_bindings = tuple(self._bind(1, 1, side, arena.block, arena.layout.step_output) for side in (0, 1))
        self._chunk_bindings: dict[int, Any] = {}
        self._direct = session.memory.on_host and not self._bfloat16_output

    def _bind(self, time: int, wanted: int, side: int, output_block: Block, output: Place) -> Any:
        """An IOBinding for calls of ``time`` steps that compute ``wanted`` outputs, reading side ``side``."""
        contract, arena, device = self._contract, self._arena, self._session.device
        binding = self._engine_for(time).io_binding()
        inputs, outputs = self._tensors(time, wanted, side)
        for name, place in inputs.items():
            binding.bind_input(name, device, 0, self._elements[name], place.shape, arena.address(place))
        for name, place in outputs.items():
            binding.bind_output(name, device, 0, self._elements[name], place.shape, arena.address(place))
        address = output_block.address + output.offset
        name = contract.output.name
        binding.bind_output(name, device, 0, self._elements[name], output.shape, address)
        return binding

    def _step(self) -> Array:
        """One step, by the shortest path where all rows stand at one position in host memory.

        A run reads all weights, which drives this code and its objects out of the caches: what follows the run costs
        ten times what it costs in a loop of its own, so little may follow.
        """
        position = self._common
        if position is None or not self._direct:
            return super()._step()
        arena, appends, positions, output = self._arena, self._arena.append_step, self._positions, self._step_output
        try:
            self._run(self._step_bindings[arena.side])
        except Exception as error:
            raise self._failed(error) from error
        for append, window in appends:
            append(position % window)
        arena.side ^= 1
        self._common = position = position + 1
        positions.fill(position)
        return output

    def _compute_step(self) -> Array:
        arena = self._arena
        arena.send_step()
        try:
            self._run(self._step_bindings[arena.side])
        except Exception as error:
            raise self._failed(error) from error
        arena.fetch_output()
        if self._bfloat16_output:
            return decode_bfloat16(self._step_output)
        return self._step_output

    def _compute_chunk(self, data: Array, every: bool) -> Array:
        arena, contract = self._arena, self._contract
        time = data.shape[1]
        indices, wanted = self._wanted(time, every)
        arena.send_chunk(data, indices)
        place = Place(0, (self.batch, wanted, *contract.output.shape), numpy_dtype(contract.output.dtype))
        block = arena.block
        if wanted == 1:
            place = arena.layout.step_output
            binding = self._chunk_bindings.get(arena.side) if time == self._session.max_time else None
            if binding is None:
                binding = self._bind(time, 1, arena.side, block, place)
                if time == self._session.max_time:
                    self._chunk_bindings[arena.side] = binding
        else:
            block = self._session.memory.allocate(place.nbytes)
            binding = self._bind(time, wanted, arena.side, block, place)
        try:
            self._engine_for(time).run_with_iobinding(binding)
        except Exception as error:
            raise self._failed(error) from error
        output: Array = np.empty(place.shape, place.dtype)
        block.download(place.offset, output)
        if wanted == time and not every:
            output = output[:, -1:]
        return decode_bfloat16(output) if self._bfloat16_output else output

    def _failed(self, error: Exception) -> EdgememError:
        if isinstance(error, EdgememError):
            return error
        return EdgememError(f"ONNX Runtime failed at position {self.position}: {error}")

    def _close(self) -> None:
        self._run = _closed
        self._step_bindings = (None, None)
        self._chunk_bindings.clear()
        self._engine_for = _closed


def _closed(_: Any) -> None:
    raise EdgememError("the session is closed.", hint="Open the bundle again.")


def _elements(contract: Contract, graph: GraphFile) -> dict[str, Any]:
    """The element type of every input and output of a graph, as ONNX Runtime's bindings take it."""
    return {
        tensor.name: element_type(tensor.dtype).for_ort
        for tensor in (*contract.inputs(graph), *contract.outputs(graph))
    }


def _load(
    onnxruntime: Any,
    bundle: Bundle,
    graph: GraphFile,
    providers: list[Any],
    threads: int | None,
    exact: bool,
    profile: Path | None,
) -> Any:
    options = onnxruntime.SessionOptions()
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # A pattern is kept for every chunk length: 50 MB more for a model of 100 MB. A graph of one step has one.
    options.enable_mem_pattern = graph.max_time == 1
    # Pushing transposes through a step's small tensors makes more of them, each a call of its own.
    disabled = ["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]
    if graph.min_time > 1 and bundle.manifest.precision.weights is None:
        # The step's engine holds the weights already, packed for its kernels: this one reads them from the file.
        options.add_session_config_entry("session.disable_prepacking", "1")
        if bundle.manifest.precision.dtype != "float16":  # whose weights are widened by folding
            disabled.append("ConstantFolding")  # it would copy a table that is the output layer too, transposed
    options.log_severity_level = 4  # errors come as exceptions; the log would repeat them
    # Lets blockwise 4-bit and 8-bit weights use the int8 kernels; float graphs do not look at it.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if exact else "4")
    if exact and bundle.manifest.precision.weights == "int8":
        # Of 8 bits there is no such kernel: weights would be widened for every product, not once when they are loaded.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    path = bundle.file(graph.file)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers, disabled_optimizers=disabled)
    except Exception as error:
        text = str(error)
        if bundle.manifest.precision.dtype == "bfloat16" and "NOT_IMPLEMENTED" in text:
            missing = re.search(r"for the node.*|for (\w+)\(\d+\)", text)
            raise RuntimeUnavailableError(
                f"ONNX Runtime {onnxruntime.__version__} cannot compute in bfloat16 here: it has no kernel "
                f"{missing[0] if missing else f'({text})'}",
                hint="Export with --dtype fp16 or fp32, run on a GPU, or use runtime='torch' (the reference).",
            ) from error
        old = any(sign in text.lower() for sign in ("opset", "ir version", "ir_version"))
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {text}",
            hint="Install a newer onnxruntime, or export with a lower opset." if old else None,
        ) from error


def cuda_options(memory: Memory) -> dict[str, str]:
    """Options of the CUDA provider.

    One stream for the engine's kernels and the arena's copies keeps them in order without synchronising. TF32 keeps 10
    bits of a mantissa: float32 summaries and running means need all 23.
    """
    return {"device_id": "0", "user_compute_stream": str(getattr(memory, "stream", 0)), "use_tf32": "0"}


def tensorrt_options(bundle: Bundle, graph: GraphFile, memory: Memory) -> dict[str, str]:
    """Options of the TensorRT provider: the caller's stream, a cache of engines, and the shapes to build for.

    Without shapes the provider would build an engine for those of the first call, and again for every longer chunk.
    """
    from edgemem.runtimes.trt.cache import cache_folder
    from edgemem.runtimes.trt.options import BuildOptions
    from edgemem.runtimes.trt.profiles import profiles

    folder = cache_folder() / "onnxruntime" / bundle.fingerprint[:16]
    with contextlib.suppress(OSError):  # without a cache it builds at every start
        folder.mkdir(parents=True, exist_ok=True)
    widest = profiles(bundle.contract, graph, BuildOptions())[-1]

    def shapes(which: str) -> str:
        sizes = {name: getattr(shape, which) for name, shape in widest.items()}
        return ",".join(f"{name}:{'x'.join(map(str, size))}" for name, size in sizes.items())

    return {
        "device_id": "0",
        "user_compute_stream": str(getattr(memory, "stream", 0)),
        "trt_engine_cache_enable": str(int(folder.is_dir())),
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": str(int(folder.is_dir())),
        "trt_timing_cache_path": str(folder),
        "trt_profile_min_shapes": shapes("smallest"),
        "trt_profile_opt_shapes": shapes("usual"),
        "trt_profile_max_shapes": shapes("largest"),
    }


def _no_cuda(why: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"device 'cuda' cannot be used: {why}.",
        hint='pip uninstall onnxruntime; pip install "edgemem[gpu]"   (or use device="cpu")',
    )
