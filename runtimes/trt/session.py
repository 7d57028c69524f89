"""TensorRT, bound to an arena on the device: the state never leaves it.

::

    host             tokens, positions (page-locked)                            output (page-locked)
                          |                                                         ^
    step    graph of   [ copy in, engine: side s -> side 1 - s, entries ]       copy out, wait;  ring append
            side s

A step is one launch: a CUDA graph holds the copy of the tokens and all kernels. The replaced states swap places after
every step, so there are two graphs, one for each direction. What no graph can hold, as its target moves, is the append:
one strided copy for all rings of a shape. It is issued last, and nobody waits for it. Chunks run without a graph.

Each stream has a CUDA stream of its own, so that streams may run in different threads.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from edgemem.bundle import Bundle, GraphFile
from edgemem.dtypes import decode_bfloat16, numpy_dtype
from edgemem.errors import BundleError, EdgememError, InputError, RuntimeUnavailableError
from edgemem.overrides import override
from edgemem.runtimes.cuda import CudaBlock, CudaMemory
from edgemem.runtimes.engine import Call, Engine, Tensors
from edgemem.runtimes.memory import Array
from edgemem.runtimes.session import Session
from edgemem.runtimes.top import Top
from edgemem.runtimes.trt import sidecar
from edgemem.runtimes.trt.builder import require_served
from edgemem.runtimes.trt.contexts import Bound, Contexts, bind
from edgemem.runtimes.trt.engine import open_engine, shipped_folder
from edgemem.runtimes.trt.flavour import Flavour, load_flavour
from edgemem.runtimes.trt.io import TOP_INDICES, TOP_VALUES, dtype_name
from edgemem.runtimes.trt.kernels import KernelCache
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.profiles import profile_for

_LOG = logging.getLogger("edgemem.tensorrt")


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
    """Load the bundle's engines with ``tensorrt``; see :func:`edgemem.open`. ``threads`` means nothing to a GPU."""
    return TrtSession(bundle, device=device, guard=guard)


def open_rtx_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
    """Load the bundle's engines with ``tensorrt_rtx``; see :func:`edgemem.open`."""
    return RtxSession(bundle, device=device, guard=guard)


class TrtSession(Session):
    """A bundle's engines in TensorRT.

    Args:
        bundle: The bundle. Engines that it contains are taken; without any they are built and cached.
        device: ``"cuda"`` or ``"auto"``, which mean the same.
        guard: See :class:`~edgemem.runtimes.session.Session`.
        **settings: Further arguments of :class:`TrtEngine`.
    """

    engine: TrtEngine

    def __init__(self, bundle: Bundle, *, device: str = "auto", guard: bool = False, **settings: Any) -> None:
        super().__init__(bundle.contract, bundle, self._engine_type()(bundle, device, **settings), guard=guard)

    @staticmethod
    def _engine_type() -> type[TrtEngine]:
        return TrtEngine


class RtxSession(TrtSession):
    """A bundle's engines in TensorRT-RTX."""

    @staticmethod
    @override
    def _engine_type() -> type[TrtEngine]:
        return RtxEngine


class TrtEngine(Engine):
    """A bundle's compiled engines.

    Args:
        bundle: The bundle.
        device: ``"cuda"`` or ``"auto"``, which mean the same.
        options: What the engines must be able to do; ``None``: what those that the bundle contains were built for,
            else batches of 1.
        cuda_graphs: Whether a step is one launch of a CUDA graph; without, its kernels are launched one by one.
        announce: Called with a line where something takes long; by default a line of the log ``edgemem.tensorrt``.

    Attributes:
        contract: The bundle's contract.
        flavour: The TensorRT.
        options: What the engines were built for.
        contexts: Of each graph file.
        cuda_graphs: As above; false once a capture was refused.

    Raises:
        RuntimeUnavailableError: There is no CUDA device, or TensorRT is not installed or does not load.
        EngineError: An engine is not for this machine or bundle, or cannot be built.
    """

    runtime: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    package: ClassVar[str] = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        device: str = "auto",
        *,
        options: BuildOptions | None = None,
        cuda_graphs: bool = True,
        announce: Callable[[str], None] = _LOG.warning,
    ) -> None:
        if device == "cpu":
            raise RuntimeUnavailableError(
                f"the runtime {self.runtime} runs on a CUDA device, device 'cpu' was asked for.",
                hint="Use runtime='onnxruntime'.",
            )
        if not bundle.contract.has_fixed_size:
            raise RuntimeUnavailableError(
                f"the runtime {self.runtime} keeps states of fixed size, {bundle.path} has one that grows.",
                hint="Use runtime='onnxruntime'.",
            )
        self.flavour = load_flavour(self.package)
        self.flavour.cuda.require()
        require_served(self.flavour)
        self.memory: CudaMemory = CudaMemory(blocking=False)
        self.contract = bundle.contract
        self.options = options or _shipped_options(bundle, self.flavour)
        self.picks = self.options.top_k
        self.cuda_graphs = cuda_graphs
        self.announce = announce
        self._bundle = bundle
        self.contexts = {graph.file: self._load(graph) for graph in bundle.manifest.graphs}
        self._chunk_lanes: dict[str, ChunkLane] = {}
        self._lock = threading.Lock()

    def _load(self, graph: GraphFile) -> Contexts:
        bundle, flavour = self._bundle, self.flavour
        engine = open_engine(bundle, graph, flavour, options=self.options, announce=self.announce)
        kernels = None
        if flavour.is_rtx:
            kernels = KernelCache(bundle, graph, flavour, self.options, self.announce)
        return Contexts(flavour, engine, graph.file, kernels)

    @property
    def engine_captures(self) -> bool:
        """Whether TensorRT keeps its own CUDA graphs, so that nobody else may."""
        return self.cuda_graphs and self.flavour.is_rtx

    def graph_for(self, time: int) -> tuple[GraphFile, Contexts]:
        """The graph that takes ``time`` steps in one call, and its contexts."""
        graph = self._bundle.graph_for(time)
        if graph is None:
            raise BundleError(f"no graph of the bundle takes {time} time steps.")
        return graph, self.contexts[graph.file]

    def chunk_lane(self, time: int, memory: CudaMemory) -> ChunkLane:
        """What runs chunks of ``time`` steps, for all streams: its scratch memory is large."""
        graph, contexts = self.graph_for(time)
        with self._lock:
            if graph.file not in self._chunk_lanes:
                context = contexts.new(profile_for(graph, time), memory)
                self._chunk_lanes[graph.file] = ChunkLane(context, threading.Lock())
            return self._chunk_lanes[graph.file]

    def step_context(self, memory: CudaMemory) -> Any:
        """A context for steps that go in one direction between the two copies of the replaced states."""
        graph, contexts = self.graph_for(1)
        with self._lock:
            return contexts.new(profile_for(graph, 1), memory, captures=self.engine_captures)

    @override
    def for_stream(self, batch: int) -> Engine:
        for graph in self._bundle.manifest.graphs:
            profile = profile_for(graph, graph.max_time)
            limit = self.contexts[graph.file].max_batch(self.contract.input.name, profile)
            if batch > limit:
                options = replace(self.options, max_batch=batch)
                raise InputError(
                    f"a stream of batch {batch}: the engine of {graph.file} was built for batches of up to {limit}.",
                    hint=f"Build it again: {sidecar.rebuild_command(self._bundle, self.flavour, options)}",
                )
        return StreamEngine(self, batch)

    @override
    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        raise NotImplementedError("every stream has an engine of its own.")

    @override
    def close(self) -> None:
        for contexts in self.contexts.values():
            contexts.close()
        self._chunk_lanes.clear()
        self.contexts.clear()


class RtxEngine(TrtEngine):
    """A bundle's compiled engines in TensorRT-RTX."""

    runtime = "tensorrt-rtx"
    title = "TensorRT-RTX"
    package = "tensorrt_rtx"


@dataclass
class ChunkLane:
    """The context that runs chunks, and the lock that a stream holds until its chunk is done."""

    context: Any
    lock: threading.Lock


class StreamEngine(Engine):
    """What computes one stream: contexts, and a CUDA stream of its own.

    Args:
        shared: The engines that all streams share.
        batch: Streams that advance together.
    """

    def __init__(self, shared: TrtEngine, batch: int) -> None:
        self.runtime, self.title = shared.runtime, shared.title  # type: ignore[misc]
        self._shared = shared
        self.memory: CudaMemory = CudaMemory(blocking=False)
        self._top = TopOutputs(shared, self.memory, batch) if shared.options.top_k else None
        self.picks = shared.picks

    @override
    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        given, computed = _bound(inputs), _bound(outputs)
        if self._top is not None:
            output = outputs[self._shared.contract.output.name]
            computed |= self._top.at(output.shape[1])
        memory = self.memory
        if time == 1:
            context = self._shared.step_context(memory)
            bind(context, given, computed)
            return lambda: self._enqueue(context)
        lane = self._shared.chunk_lane(time, memory)

        def run() -> None:
            with lane.lock:
                bind(lane.context, given, computed)
                self._enqueue(lane.context)
                memory.synchronize()

        return run

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self.memory.stream):
            raise RuntimeError(self._shared.flavour.errors())

    @override
    def ready(self, steps: tuple[Call, Call]) -> tuple[Call, Call]:
        """Try both directions once, and record them where wanted.

        An engine allocates in its first run, which a capture forbids.
        """
        try:
            for run in steps:
                run()
        except RuntimeError as error:
            raise EdgememError(f"{self.title} failed in its first run: {error}") from error
        self.memory.synchronize()
        shared = self._shared
        if shared.cuda_graphs and not shared.engine_captures:
            try:
                first, second = (self.memory.capture(run).launch for run in steps)
                return first, second
            except (EdgememError, RuntimeError) as error:
                shared.cuda_graphs = False
                shared.announce(f"CUDA graphs are off, steps take longer: {error}")
        return steps

    @override
    def top(self, k: int) -> Top:
        assert self._top is not None
        return self._top.fetch(k)

    @override
    def finish(self) -> None:
        self.memory.synchronize()


def _bound(tensors: Tensors) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {name: (tensor.address, tensor.shape) for name, tensor in tensors.items()}


class TopOutputs:
    """The largest outputs of a step, which the engine picks: values and their indices, ``[B, S, K]`` each.

    Attributes:
        k: ``K``.
        block: Where those of a single output lie, values first.
    """

    def __init__(self, engine: TrtEngine, memory: CudaMemory, batch: int) -> None:
        _, contexts = engine.graph_for(1)
        self.k = engine.options.top_k
        self._batch = batch
        self._memory = memory
        self._values, self._indices = (
            numpy_dtype(dtype_name(contexts.engine.get_tensor_dtype(name))) for name in (TOP_VALUES, TOP_INDICES)
        )
        self._bfloat16 = engine.contract.output.dtype == "bfloat16"
        self.block = memory.allocate(self.nbytes(1))
        self._wide: CudaBlock | None = None
        self._host = self.block.host_buffer(0, self.nbytes(1))
        shape = (batch, self.k)
        self._host_values: Array = np.ndarray(shape, self._values, self._host)
        self._host_indices: Array = np.ndarray(shape, self._indices, self._host, self._start(1))

    def at(self, wanted: int) -> Bound:
        """Both outputs of a call that computes ``wanted``; where several are computed nobody reads them."""
        if wanted > 1 and (self._wide is None or self._wide.nbytes < self.nbytes(wanted)):
            self._wide = None  # freed first: the two need not fit side by side
            self._wide = self._memory.allocate(self.nbytes(wanted))
        block = self.block if wanted == 1 or self._wide is None else self._wide
        shape = (self._batch, wanted, self.k)
        return {TOP_VALUES: (block.address, shape), TOP_INDICES: (block.address + self._start(wanted), shape)}

    def nbytes(self, wanted: int) -> int:
        """Bytes of both."""
        return self._start(wanted) + self._batch * wanted * self.k * self._indices.itemsize

    def fetch(self, k: int) -> Top:
        """The ``k`` largest values and their indices, ``[B, k]`` each, of the step issued last."""
        self.block.download(0, self._host)
        values = decode_bfloat16(self._host_values) if self._bfloat16 else self._host_values
        return values[:, :k].astype(np.float32), self._host_indices[:, :k].astype(np.int64)

    def _start(self, wanted: int) -> int:
        return self._memory.aligned(self._batch * wanted * self.k * self._values.itemsize)


def _shipped_options(bundle: Bundle, flavour: Flavour) -> BuildOptions:
    """What the engines that the bundle carries were built for; the default where it carries none."""
    step = bundle.graph_for(1)
    path = sidecar.sidecar_path(shipped_folder(bundle, flavour), step) if step else None
    if path is None or not path.exists():
        return BuildOptions()
    try:
        return sidecar.Sidecar.load(path).options
    except EdgememError:
        return BuildOptions()  # what is wrong with it is said when it is loaded
