"""ONNX Runtime, bound to addresses: a step runs what was bound once, and allocates nothing.

The replaced states swap places after every call, so the bindings of a step exist twice. A ring is bound as an input at
one address and changed there between two runs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from edgemem.bundle import Bundle, GraphFile
from edgemem.dtypes import element_type
from edgemem.errors import BundleError, EdgememError, RuntimeUnavailableError
from edgemem.extras import how_to_install
from edgemem.machine import huge_pages
from edgemem.machine.mappings import make_private
from edgemem.overrides import override
from edgemem.runtimes.engine import Call, Engine, Tensors
from edgemem.runtimes.memory import HostMemory, Memory
from edgemem.runtimes.ort.form import STANDARD, native_operators
from edgemem.runtimes.ort.graph import check_graph
from edgemem.runtimes.ort.importing import import_onnxruntime, load_cuda_libraries
from edgemem.runtimes.ort.load import LoadOptions, load_graph
from edgemem.runtimes.ort.providers import CPU, CUDA, TENSORRT, cuda_options, no_cuda, tensorrt_options
from edgemem.runtimes.session import Session


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
        regions = huge_pages.anonymous_regions()
        with bundle.loading() as folder:
            if first == TENSORRT:  # which names the engines in its cache after the path
                folder = bundle.path
            if first != CPU and not self._load(onnxruntime, folder, options, first, None):
                if device == "cuda" or first == TENSORRT:
                    raise no_cuda(f"ONNX Runtime could not start {first}")
                self.memory, first = HostMemory(), CPU
            if first == CPU:
                self._load_on_cpu(onnxruntime, folder, options)
                huge_pages.join_pages_since(regions)
            make_private(folder)
        self._device = "cpu" if first == CPU else "cuda"

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
            loaded = load_graph(onnxruntime, self._bundle, folder, graph, providers, options, operators)
            if loaded.get_providers()[0] != first:
                return False
            check_graph(loaded, self._bundle.contract, graph)
            self.graphs[graph.file] = loaded
        return True

    def _choose(self, available: list[str], device: str) -> tuple[Memory, str]:
        """The memory and the first provider for ``device``."""
        if device == "cpu" or (device == "auto" and CUDA not in available):
            return HostMemory(), CPU
        if CUDA not in available:
            raise no_cuda(f"this ONNX Runtime has no {CUDA}, only {', '.join(available)}")
        from edgemem.runtimes.cuda import CudaMemory

        try:
            return CudaMemory(), CUDA
        except RuntimeUnavailableError:
            if device == "cuda":
                raise
            return HostMemory(), CPU

    def _providers(self, memory: Memory, graph: GraphFile, first: str) -> list[Any]:
        """The providers before the CPU's, with their options."""
        return [] if first == CPU else [(CUDA, cuda_options(memory))]

    def graph_for(self, time: int) -> Any:
        """The ``onnxruntime.InferenceSession`` that takes ``time`` steps in one call."""
        graph = self._bundle.graph_for(time)
        if graph is None:
            raise BundleError(f"no graph of the bundle takes {time} time steps.")
        return self.graphs[graph.file]

    @override
    def bind(self, time: int, inputs: Tensors, outputs: Tensors) -> Call:
        loaded, device = self.graph_for(time), self._device
        binding = loaded.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                bind(name, device, 0, element_type(tensor.dtype).for_ort, tensor.shape, tensor.address)
        return partial(loaded.run_with_iobinding, binding)

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
        from edgemem.runtimes.cuda import CudaMemory

        return CudaMemory(), TENSORRT

    def _providers(self, memory: Memory, graph: GraphFile, first: str) -> list[Any]:
        return [(TENSORRT, tensorrt_options(self._bundle, graph, memory)), (CUDA, cuda_options(memory))]
