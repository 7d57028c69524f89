"""ONNX Runtime, bound to addresses: a step runs what was bound once, and allocates nothing.

The replaced states swap places after every call, so the bindings of a step exist twice. A ring is bound as an input at
one address and changed there between two runs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from edgemem.bundle import Bundle, GraphFile
from edgemem.dtypes import element_type
from edgemem.errors import BundleError, EdgememError, RuntimeUnavailableError
from edgemem.extras import how_to_install
from edgemem.machine import huge_pages
from edgemem.machine.collector import collector_off
from edgemem.overrides import override
from edgemem.runtimes.cuda import CudaMemory
from edgemem.runtimes.engine import Call, Engine, Tensors
from edgemem.runtimes.gate import Gate
from edgemem.runtimes.memory import HostMemory, Memory
from edgemem.runtimes.ort.device import RunOptions, inputs_on_host
from edgemem.runtimes.ort.form import STANDARD, native_operators
from edgemem.runtimes.ort.graph import check_graph
from edgemem.runtimes.ort.importing import import_onnxruntime, load_cuda_libraries
from edgemem.runtimes.ort.load import LoadOptions, load_graph
from edgemem.runtimes.ort.providers import (
    CPU,
    CUDA,
    TENSORRT,
    cuda_options,
    no_cuda,
    not_started,
    recordable,
    tensorrt_options,
)
from edgemem.runtimes.session import Session

_LOG = logging.getLogger("edgemem.onnxruntime")


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
    """Load the bundle's graphs; see :func:`edgemem.open`."""
    return OrtSession(bundle, threads=threads, device=device, guard=guard)


def open_tensorrt_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> Session:
    """Load the bundle's graphs into ONNX Runtime's TensorRT provider; see :func:`edgemem.open`."""
    engine = OrtTensorrtEngine(bundle, device, LoadOptions(threads))
    return Session(bundle.contract, bundle, engine, guard=guard)


class OrtSession(Session):
    """A bundle loaded into ONNX Runtime.

    Args:
        bundle: The bundle.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        guard: See :class:`~edgemem.runtimes.session.Session`.
        **options: Fields of :class:`~edgemem.runtimes.ort.load.LoadOptions`.
    """

    engine: OrtEngine

    def __init__(self, bundle: Bundle, *, device: str = "auto", guard: bool = False, **options: Any) -> None:
        super().__init__(bundle.contract, bundle, OrtEngine(bundle, device, LoadOptions(**options)), guard=guard)


class OrtEngine(Engine):
    """A bundle's graphs in ONNX Runtime.

    Args:
        bundle: The bundle.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        options: How graphs are loaded.

    Attributes:
        graphs: The ``onnxruntime.InferenceSession`` of each graph file.
        form: Which form of the graphs runs, and if it is the standard one, why.
        cuda_graphs: Whether a step on a CUDA device is one launch of a CUDA graph.

    Raises:
        RuntimeUnavailableError: ONNX Runtime cannot be imported, or the device cannot be used.
        BundleError: ONNX Runtime cannot load a graph.
        ContractError: A graph does not keep the contract.
    """

    runtime: ClassVar[str] = "onnxruntime"
    title: ClassVar[str] = "ONNX Runtime"

    def __init__(self, bundle: Bundle, device: str, options: LoadOptions) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise RuntimeUnavailableError(
                f"onnxruntime cannot be imported: {error}", hint=how_to_install("onnxruntime")
            ) from error
        self._bundle = bundle
        self.memory, first = self._choose(onnxruntime.get_available_providers(), device)
        if first != CPU:
            load_cuda_libraries(onnxruntime)
        self.graphs: dict[str, Any] = {}
        self.cuda_graphs = False
        self._on_host: dict[str, frozenset[str]] = {}
        self._run_options = RunOptions(onnxruntime)
        self._gate = Gate()
        self._threads: set[int] = set()
        regions = huge_pages.anonymous_regions()
        with bundle.loading() as folder:
            if first == TENSORRT:  # which names the engines in its cache after the path
                folder = bundle.path
            if first != CPU and not self._load(onnxruntime, folder, options, first, None):
                if device == "cuda" or first == TENSORRT:
                    raise not_started(first)
                self.memory, first = HostMemory(), CPU
            if first == CPU:
                self._load_on_cpu(onnxruntime, folder, options)
        if first == CPU:  # the weights lie in memory of this process from here on
            huge_pages.join_pages_since(regions)
        self._device = "cpu" if first == CPU else "cuda"
        if isinstance(self.memory, CudaMemory):  # streams in several threads share its stream
            self.memory.gate = self._gate

    def _load_on_cpu(self, onnxruntime: Any, folder: Path, options: LoadOptions) -> None:
        """Load the native form where it works, else the standard form."""
        operators, self.form = native_operators(self._bundle, options)
        if operators is not None:
            try:
                self._load(onnxruntime, folder, options, CPU, operators)
                return
            except EdgememError as error:
                self.form = f"{STANDARD}: {error.message}"
        self._load(onnxruntime, folder, options, CPU, None)

    def _load(self, onnxruntime: Any, folder: Path, options: LoadOptions, first: str, operators: Path | None) -> bool:
        """Load every graph; whether ONNX Runtime started the provider."""
        for graph in self._bundle.manifest.graphs:
            providers = [*self._providers(self.memory, graph, first), CPU]
            load = partial(load_graph, onnxruntime, self._bundle, folder, graph)
            loaded = None
            wanted = options.cuda_graphs and options.profile is None  # which sees no operator of a recording
            if wanted and first == CUDA and graph.min_time == 1:
                with contextlib.suppress(EdgememError):  # not every node runs on the device
                    loaded = load(recordable(providers), options, fallback=False)
                self.cuda_graphs = loaded is not None
            loaded = loaded or load(providers, options, operators)
            if loaded.get_providers()[0] != first:
                return False
            check_graph(loaded, self._bundle.contract, graph)
            self.graphs[graph.file] = loaded
            self._on_host[graph.file] = inputs_on_host(loaded) if first != CPU else frozenset()
        return True

    def _choose(self, available: list[str], device: str) -> tuple[Memory, str]:
        """The memory and the first provider for ``device``."""
        if device == "cpu" or (device == "auto" and CUDA not in available):
            return HostMemory(), CPU
        if CUDA not in available:
            raise no_cuda(f"this ONNX Runtime has no {CUDA}, only {', '.join(available)}")
        try:
            return CudaMemory(), CUDA
        except RuntimeUnavailableError:
            if device == "cuda":
                raise
            return HostMemory(), CPU

    def _providers(self, memory: Memory, graph: GraphFile, first: str) -> list[Any]:
        """The providers before the CPU's, with their options."""
        return [] if first == CPU else [(CUDA, cuda_options(memory))]

    def graph_for(self, time: int) -> tuple[GraphFile, Any]:
        """The graph that takes ``time`` steps in one call, and its ``onnxruntime.InferenceSession``."""
        graph = self._bundle.graph_for(time)
        if graph is None:
            raise BundleError(f"no graph of the bundle takes {time} time steps.")
        return graph, self.graphs[graph.file]

    @override
    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        (graph, loaded), device = self.graph_for(time), self._device
        binding = loaded.io_binding()
        moved = []
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                given = name, device, 0, element_type(tensor.dtype).for_ort, tensor.shape, tensor.address
                bind(*given)
                if name in self._on_host[graph.file] and tensors is inputs:
                    moved.append(given)
        if device == "cpu":
            return partial(loaded.run_with_iobinding, binding)
        gate, chosen, finish, threads = self._gate, self._run_options, self.finish, self._threads

        def run() -> None:
            threads.add(threading.get_ident())
            if moved:
                finish()
            with gate:
                for given in moved:  # what ONNX Runtime reads on the host it fetches when it is bound, not when it runs
                    binding.bind_input(*given)
                loaded.run_with_iobinding(binding, chosen.now)

        return run

    @override
    def ready(self, steps: tuple[Call, Call]) -> tuple[Call, Call]:
        """Record both directions where the model can be recorded.

        ONNX Runtime allocates in its first runs, which a recording forbids. What a run uploads it keeps until the next
        run that waits for the device: that must follow at once, and come from the same thread. So nothing is recorded
        any more once another thread has run the model.
        """
        graph, _ = self.graph_for(1)
        if not self.cuda_graphs or self._on_host[graph.file]:
            return steps
        try:
            for run in steps * 2:
                run()
            # The collector may free memory of the device, which spoils a recording.
            with self._gate.alone(), collector_off():
                if self._threads == {threading.get_ident()}:
                    return self._recorded(steps)
        except (EdgememError, RuntimeError) as error:
            _LOG.warning("CUDA graphs are off, steps take longer: %s", error)
        return steps

    def _recorded(self, steps: tuple[Call, Call]) -> tuple[Call, Call]:
        memory = self.memory
        assert isinstance(memory, CudaMemory)
        try:
            with self._run_options.recording():
                first, second = (memory.capture(run, constants=True).launch for run in steps)
        finally:
            steps[0]()
        return first, second

    @override
    def finish(self) -> None:
        if isinstance(self.memory, CudaMemory):
            self.memory.synchronize()

    @override
    def close(self) -> None:
        self.graphs.clear()


class OrtTensorrtEngine(OrtEngine):
    """A bundle's graphs in ONNX Runtime's TensorRT provider, which builds its engines at the first start.

    The provider builds for the shapes it is told: one stream, 1 to the graph's most time steps. A larger batch makes it
    build again.
    """

    runtime = "onnxruntime-tensorrt"
    title = "ONNX Runtime's TensorRT provider"

    def _choose(self, available: list[str], device: str) -> tuple[Memory, str]:
        if device == "cpu":
            raise RuntimeUnavailableError(
                f"the runtime {self.runtime} runs on a CUDA device, device 'cpu' was asked for.",
                hint="Use runtime='onnxruntime'.",
            )
        if TENSORRT not in available:
            raise no_cuda(f"this ONNX Runtime has no {TENSORRT}, only {', '.join(available)}")
        return CudaMemory(), TENSORRT

    def _providers(self, memory: Memory, graph: GraphFile, first: str) -> list[Any]:
        return [(TENSORRT, tensorrt_options(self._bundle, graph, memory)), (CUDA, cuda_options(memory))]
