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

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from edgemem.bundle import Bundle, GraphFile
from edgemem.dtypes import decode_bfloat16, numpy_dtype
from edgemem.errors import BundleError, EdgememError, InputError, RuntimeUnavailableError
from edgemem.runtimes.arena import Arena, Place
from edgemem.runtimes.arena_stream import ArenaStream
from edgemem.runtimes.cuda import CudaBlock, CudaMemory
from edgemem.runtimes.memory import Array
from edgemem.runtimes.session import Session, Stream
from edgemem.runtimes.top import Top
from edgemem.runtimes.trt import sidecar
from edgemem.runtimes.trt.contexts import Bound, Contexts, bind
from edgemem.runtimes.trt.engine import open_engine, shipped_folder
from edgemem.runtimes.trt.flavour import Flavour, load_flavour
from edgemem.runtimes.trt.io import TOP_INDICES, TOP_VALUES, dtype_name
from edgemem.runtimes.trt.kernels import KernelCache
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.profiles import profile_for

_LOG = logging.getLogger("edgemem.tensorrt")


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> TrtSession:
    """Load the bundle's engines with ``tensorrt``; see :func:`edgemem.open`. ``threads`` means nothing to a GPU."""
    return TrtSession(bundle, device=device, guard=guard)


def open_rtx_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> TrtSession:
    """Load the bundle's engines with ``tensorrt_rtx``; see :func:`edgemem.open`."""
    return RtxSession(bundle, device=device, guard=guard)


class TrtSession(Session):
    """A bundle's engines in TensorRT.

    Args:
        bundle: The bundle. Engines that it carries are taken; without any they are built and cached.
        device: ``"cuda"`` or ``"auto"``, which mean the same.
        guard: See :class:`~edgemem.runtimes.session.Session`.
        options: What the engines must be able to do; ``None``: what those that the bundle carries were built for,
            else batches of 1.
        cuda_graphs: Whether a step is one launch of a CUDA graph; without, its kernels are launched one by one.
        announce: Called with a line where something takes long; by default a line of the log ``edgemem.tensorrt``.

    Attributes:
        flavour: The TensorRT.
        options: What the engines were built for.
        engines: Of each graph file.
        cuda_graphs: As above; false once a capture was refused.

    Raises:
        RuntimeUnavailableError: There is no CUDA device, or TensorRT is not installed or does not load.
        EngineError: An engine is not for this machine or bundle, or cannot be built.
    """

    runtime: ClassVar[str] = "tensorrt"
    package: ClassVar[str] = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        guard: bool = False,
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
        flavour = load_flavour(self.package)
        flavour.cuda.require()
        super().__init__(bundle.contract, bundle, device="cuda", guard=guard)
        self.flavour = flavour
        self.options = options or _shipped_options(bundle, flavour)
        self.cuda_graphs = cuda_graphs
        self.announce = announce
        self.engines = {graph.file: self._load(bundle, graph) for graph in bundle.manifest.graphs}
        self._chunk_lanes: dict[str, ChunkLane] = {}
        self._lock = threading.Lock()

    def _load(self, bundle: Bundle, graph: GraphFile) -> Contexts:
        engine = open_engine(bundle, graph, self.flavour, options=self.options, announce=self.announce)
        kernels = None
        if self.flavour.is_rtx:
            kernels = KernelCache(bundle, graph, self.flavour, self.options, self.announce)
        return Contexts(self.flavour, engine, graph.file, kernels)

    @property
    def engine_captures(self) -> bool:
        """Whether the engine keeps its own CUDA graphs, so that nobody else may."""
        return self.cuda_graphs and self.flavour.is_rtx

    def graph_for(self, time: int) -> tuple[GraphFile, Contexts]:
        """The graph that takes ``time`` steps in one call, and its engine."""
        graph = self.bundle.graph_for(time)
        if graph is None:
            raise BundleError(f"no graph of the bundle takes {time} time steps.")
        if self._closed:
            raise _closed()
        return graph, self.engines[graph.file]

    def chunk_lane(self, time: int, memory: CudaMemory) -> ChunkLane:
        """What runs chunks of ``time`` steps, for all streams: its scratch memory is large."""
        graph, contexts = self.graph_for(time)
        with self._lock:
            if graph.file not in self._chunk_lanes:
                context = contexts.new(profile_for(graph, time), memory)
                self._chunk_lanes[graph.file] = ChunkLane(context, threading.Lock())
            return self._chunk_lanes[graph.file]

    def step_contexts(self, memory: CudaMemory) -> tuple[Any, Any]:
        """Two contexts for steps, one for each direction in which the replaced states go."""
        graph, contexts = self.graph_for(1)
        profile = profile_for(graph, 1)
        with self._lock:
            first, second = (contexts.new(profile, memory, captures=self.engine_captures) for _ in range(2))
        return first, second

    def _new_stream(self, batch: int, initial: bool) -> Stream:
        for graph in self.bundle.manifest.graphs:
            time = graph.max_time
            limit = self.engines[graph.file].max_batch(self.contract.input.name, profile_for(graph, time))
            if batch > limit:
                options = BuildOptions(**{**vars(self.options), "max_batch": batch})
                raise InputError(
                    f"a stream of batch {batch}: the engine of {graph.file} was built for batches of up to {limit}.",
                    hint=f"Build it again: {sidecar.rebuild_command(self.bundle, self.flavour, options)}",
                )
        return TrtStream(self, batch)

    def close(self) -> None:
        """See :meth:`Session.close`."""
        super().close()
        for contexts in self.engines.values():
            contexts.close()
        self._chunk_lanes.clear()
        self.engines.clear()


class RtxSession(TrtSession):
    """A bundle's engines in TensorRT-RTX."""

    runtime = "tensorrt-rtx"
    package = "tensorrt_rtx"


@dataclass
class ChunkLane:
    """The context that runs chunks, and the lock that a stream holds until its chunk is done."""

    context: Any
    lock: threading.Lock


class TrtStream(ArenaStream):
    """A stream whose state lies on the device."""

    _session: TrtSession

    def __init__(self, session: TrtSession, batch: int) -> None:
        self._memory = memory = CudaMemory(blocking=False)
        super().__init__(session, batch, Arena(memory, session.contract, batch, session.max_time))
        self._top = TopOutputs(session, memory, batch) if session.options.top_k else None
        self._wide: CudaBlock | None = None
        if not session.contract.output_indices and session.max_time > 1:
            self._wide = memory.allocate(self._wide_bytes(session.max_time))
        self._contexts: tuple[Any, ...] = session.step_contexts(memory)
        for side in (0, 1):
            self._bind_step(side)
        self._launch: tuple[Callable[[], None], ...] = self._prepare()

    # Binding and capture.

    def _bind_step(self, side: int) -> None:
        arena = self._arena
        inputs, outputs = self._tensors(1, 1, side)
        outputs[self._contract.output.name] = arena.layout.step_output
        bound = {name: (arena.address(place), place.shape) for name, place in outputs.items()}
        if self._top is not None:
            bound |= self._top.at(self._top.block.address, 1)
        bind(self._contexts[side], self._addresses(inputs), bound)

    def _addresses(self, places: dict[str, Place]) -> Bound:
        return {name: (self._arena.address(place), place.shape) for name, place in places.items()}

    def _prepare(self) -> tuple[Callable[[], None], ...]:
        """Try both directions once, record them where wanted, and leave the initial state behind.

        An engine allocates in its first run, which a capture forbids. The runs make a step of each side's state out of
        the other's, which is why the state is put back afterwards.
        """
        session = self._session
        issues = [self._issue(side) for side in (0, 1)]
        self._arena.reset()
        for issue in issues:
            issue()
        self._memory.synchronize()
        launches: tuple[Callable[[], None], ...] = tuple(issues)
        if session.cuda_graphs and not session.engine_captures:
            try:
                launches = tuple(self._memory.capture(issue).launch for issue in issues)
            except EdgememError as error:
                session.cuda_graphs = False
                session.announce(f"CUDA graphs are off, steps take longer: {error.message}")
        self._arena.reset()
        return launches

    def _issue(self, side: int) -> Callable[[], None]:
        """What puts a step that reads ``side`` into the CUDA stream."""
        context, stream, send = self._contexts[side], self._memory.stream, self._arena.send_step

        def issue() -> None:
            send()
            self._enqueue(context, stream)

        return issue

    def _enqueue(self, context: Any, stream: int) -> None:
        if not context.execute_async_v3(stream):
            flavour = self._session.flavour
            raise EdgememError(f"{flavour.name} failed at position {self.position}: {flavour.errors()}.")

    # What an engine does.

    def _compute_step(self) -> Array:
        arena = self._arena
        self._launch[arena.side]()
        arena.fetch_output()
        return decode_bfloat16(self._step_output) if self._bfloat16_output else self._step_output

    def _picks(self, k: int) -> bool:
        return self._top is not None and k <= self._top.k

    def _compute_top(self, k: int) -> Top:
        assert self._top is not None
        self._launch[self._arena.side]()
        return self._top.fetch(k)

    def _compute_chunk(self, data: Array, every: bool) -> Array:
        arena, contract, memory = self._arena, self._contract, self._memory
        time = data.shape[1]
        lane = self._session.chunk_lane(time, memory)
        indices, wanted = self._wanted(time, every)
        inputs, outputs = self._tensors(time, wanted, arena.side)
        bound = dict(self._addresses(outputs))
        if wanted == 1:
            block, place = arena.block, arena.layout.step_output
            top = self._top.block.address if self._top else 0
        else:
            block, place = self._wide_block(wanted), self._wide_output(wanted)
            top = block.address + memory.aligned(place.nbytes)
        bound[contract.output.name] = (block.address + place.offset, place.shape)
        if self._top is not None:
            bound |= self._top.at(top, wanted)
        arena.send_chunk(data, indices)
        with lane.lock:
            bind(lane.context, self._addresses(inputs), bound)
            self._enqueue(lane.context, memory.stream)
            output: Array
            if wanted == 1:
                arena.fetch_output()
                output = arena.step_output
            elif every:
                output = np.empty(place.shape, place.dtype)
                block.download(0, output)
            else:  # the graph computes all of them, but the last of each row is all that is wanted
                output = np.empty((self.batch, 1, *place.shape[2:]), place.dtype)
                for row, last in enumerate(output):
                    block.download((row + 1) * place.row_bytes - last.nbytes, last)
        return decode_bfloat16(output) if self._bfloat16_output else output

    def _wide_output(self, wanted: int) -> Place:
        """The outputs of several steps, in a block of their own: they may take more than the whole state."""
        output = self._contract.output
        return Place(0, (self.batch, wanted, *output.shape), numpy_dtype(output.dtype))

    def _wide_bytes(self, wanted: int) -> int:
        top = self._top.nbytes(wanted) if self._top else 0
        return self._memory.aligned(self._wide_output(wanted).nbytes) + top

    def _wide_block(self, wanted: int) -> CudaBlock:
        nbytes = self._wide_bytes(wanted)
        if self._wide is None or self._wide.nbytes < nbytes:
            self._wide = None  # freed first: the two need not fit side by side
            self._wide = self._memory.allocate(nbytes)
        return self._wide

    def _copy_rows(self, source: Stream, rows: Sequence[int] | None) -> None:
        if not isinstance(source, TrtStream):
            raise TypeError(f"cannot copy from a {type(source).__name__}")
        # Each has a CUDA stream of its own: the source's appends must be done before, this copy before its next step.
        source._memory.synchronize()
        super()._copy_rows(source, rows)
        self._memory.synchronize()

    def _close(self) -> None:
        def closed() -> None:
            raise _closed()

        with contextlib.suppress(EdgememError):  # a device that failed has nothing left to wait for
            self._memory.synchronize()
        self._launch = (closed, closed)
        self._contexts = ()


class TopOutputs:
    """The largest outputs of a step, which the engine picks: values and their indices, ``[B, S, K]`` each.

    Attributes:
        k: ``K``.
        block: Where those of a single output lie, values first.
    """

    def __init__(self, session: TrtSession, memory: CudaMemory, batch: int) -> None:
        _, contexts = session.graph_for(1)
        self.k = session.options.top_k
        self._batch = batch
        self._memory = memory
        self._values, self._indices = (
            numpy_dtype(dtype_name(contexts.engine.get_tensor_dtype(name))) for name in (TOP_VALUES, TOP_INDICES)
        )
        self._bfloat16 = session.contract.output.dtype == "bfloat16"
        self.block = memory.allocate(self.nbytes(1))
        self._host = self.block.host_buffer(0, self.nbytes(1))
        shape = (batch, self.k)
        self._host_values: Array = np.ndarray(shape, self._values, self._host)
        self._host_indices: Array = np.ndarray(shape, self._indices, self._host, self._start(1))

    def at(self, address: int, wanted: int) -> Bound:
        """Both outputs where ``wanted`` of them lie from ``address`` on."""
        shape = (self._batch, wanted, self.k)
        return {TOP_VALUES: (address, shape), TOP_INDICES: (address + self._start(wanted), shape)}

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


def _closed() -> EdgememError:
    return EdgememError("the session is closed.", hint="Open the bundle again.")


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
