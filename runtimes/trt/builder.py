"""From a bundle's graph to a compiled engine: parse, check against the contract, compile."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from edgemem.bundle import Bundle, GraphFile
from edgemem.contract import POSITION, Contract
from edgemem.errors import EngineError, RuntimeUnavailableError
from edgemem.runtimes.trt.flavour import BuildLog, Flavour, version_tuple
from edgemem.runtimes.trt.io import TOP_INDICES, TOP_VALUES, IoTensor, io_difference, network_io
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.profiles import Profile, profiles

Announce = Callable[[str], None]
Progress = Callable[[str, int, int], None]

_UNUSED = re.compile(r"unused input:?\s*(\S+)", re.IGNORECASE)
_MEMORY = re.compile(r"out ?of ?memory|insufficient (?:gpu |device )?memory|could not be allocated", re.IGNORECASE)
_PRECISION = re.compile(
    r"HW-specific datatypes|FP32 GEMM is not supported|\b(?:bf16|bfloat16|fp8|fp4|int4)\b.*\bsupport", re.IGNORECASE
)
_BYTES = re.compile(r"(\d{4,})\s*(?:bytes|B\b)|memory \((\d{4,})", re.IGNORECASE)


@dataclass(frozen=True)
class Built:
    """A compiled engine.

    Attributes:
        plan: The serialized engine.
        io: Its inputs and outputs, as listed from the network.
        profiles: The optimisation profiles, in order.
        warnings: What the builder warned of.
        timing_cache: What the builder measured of kernels, to be given to the next build; empty where it has none.
    """

    plan: bytes
    io: tuple[IoTensor, ...]
    profiles: tuple[Profile, ...]
    warnings: tuple[str, ...] = ()
    timing_cache: bytes = b""


@dataclass(frozen=True)
class Parsed:
    """A graph as TensorRT read it; what TensorRT keeps only pointers to is kept here with it."""

    builder: Any
    network: Any
    parser: Any
    logger: Any
    log: BuildLog


def parse(bundle: Bundle, graph: GraphFile, flavour: Flavour) -> Parsed:
    """Let TensorRT read a graph, and hold what it read to the contract. Needs no GPU with TensorRT-RTX.

    Raises:
        EngineError: It does not parse, an input is read by nothing, or it does not keep the contract.
        RuntimeUnavailableError: TensorRT cannot make a builder here.
    """
    log = BuildLog()
    logger = flavour.logger(log)
    builder = flavour.builder(logger)
    network = builder.create_network(flavour.network_flags())
    parser = flavour.module.OnnxParser(network, logger)
    # From the file, not from bytes: the weights lie beside it.
    with bundle.loading() as folder:
        parsed = parser.parse_from_file(os.fspath(folder / graph.file))
    if not parsed:
        raise EngineError(
            f"{flavour.name} {flavour.version} does not read {graph.file}: {_parser_errors(parser, log)}",
            hint="See what the target cannot take, by node: edgemem build --check-only",
        )
    network.name = bundle.contract.fingerprint
    _refuse_unused_inputs(network, log, graph)
    _check_network(network_io(network), bundle.contract, graph)
    return Parsed(builder, network, parser, logger, log)


def build_engine(
    bundle: Bundle,
    graph: GraphFile,
    flavour: Flavour,
    options: BuildOptions,
    *,
    timing_cache: bytes = b"",
    announce: Announce = lambda message: None,
    progress: Progress = lambda phase, done, total: None,
) -> Built:
    """Compile one graph of a bundle.

    Args:
        bundle: The bundle, whose hashes have been checked.
        graph: Which of its graphs.
        flavour: The TensorRT to compile with.
        options: What to compile for.
        timing_cache: What an earlier build of the same TensorRT and GPU gave.
        announce: Called with a line for each stage.
        progress: Called with the builder's phases as they go: name, steps done, steps in all.

    Raises:
        EngineError: The graph does not parse or compile, does not keep the contract, or memory does not suffice.
        RuntimeUnavailableError: TensorRT cannot make a builder here.
        KeyboardInterrupt: Ctrl-C was pressed; the builder stopped at its next step.
    """
    announce(f"{graph.file}: parsing")
    parsed = parse(bundle, graph, flavour)
    trt, log, network = flavour.module, parsed.log, parsed.network
    if options.top_k:
        _add_top_k(trt, network, bundle.contract, options.top_k)
    made = profiles(bundle.contract, graph, options)
    config = _configure(flavour, parsed.builder, network, options, made, timing_cache)
    announce(f"{graph.file}: compiling with {flavour.name} {flavour.version}")
    with _interruptible() as cancelled:
        config.progress_monitor = _monitor(trt, progress, cancelled)
        try:
            plan = parsed.builder.build_serialized_network(network, config)
        except (RuntimeError, TypeError, MemoryError) as error:
            log.add("error", str(error) or type(error).__name__)
            plan = None
        finally:
            config.progress_monitor = None
        if cancelled.is_set():
            raise KeyboardInterrupt
    if plan is None:
        raise _why_not_built(flavour, graph, log, options)
    return Built(bytes(plan), network_io(network), made, tuple(log.warnings), _timing(flavour, config))


def _check_network(io: tuple[IoTensor, ...], contract: Contract, graph: GraphFile) -> None:
    differs = io_difference(io, contract, graph)
    if differs:
        raise EngineError(
            f"{graph.file}: what TensorRT reads does not keep the contract: {differs}.",
            hint="The graph and the manifest do not belong together: export the bundle again.",
        )


def _refuse_unused_inputs(network: Any, log: BuildLog, graph: GraphFile) -> None:
    """A state that no layer reads is a state lost on the way; the parser only warns of it."""
    read = {
        tensor.name
        for layer in (network.get_layer(i) for i in range(network.num_layers))
        for tensor in (layer.get_input(k) for k in range(layer.num_inputs))
        if tensor is not None
    }
    unused = {network.get_input(i).name for i in range(network.num_inputs)} - read
    unused |= {match.group(1) for text in log.warnings for match in _UNUSED.finditer(text)}
    unused.discard(POSITION)  # the host's own: a model that looks at no position loses nothing
    if unused:
        raise EngineError(
            f"{graph.file}: no layer of the engine reads the inputs {', '.join(sorted(unused))}.",
            hint="The model ignores them, or TensorRT dropped what used them: mend the model, and export it again.",
        )


def _add_top_k(trt: Any, network: Any, contract: Contract, k: int) -> None:
    """Let the engine pick the ``k`` largest outputs: ``top_values`` and ``top_indices`` ``[B, S, K]``."""
    if len(contract.output.shape) != 1 or contract.output.shape[0] < k:
        raise EngineError(
            f"top_k={k} needs outputs [B, S, V] with V of {k} or more; {contract.output.name!r} is "
            f"[B, S, {', '.join(map(str, contract.output.shape))}]."
        )
    outputs = (network.get_output(i) for i in range(network.num_outputs))
    logits = next(tensor for tensor in outputs if tensor.name == contract.output.name)
    layer = network.add_topk(logits, trt.TopKOperation.MAX, k, 1 << 2)
    for index, name in enumerate((TOP_VALUES, TOP_INDICES)):
        layer.get_output(index).name = name
        network.mark_output(layer.get_output(index))


def _configure(
    flavour: Flavour, builder: Any, network: Any, options: BuildOptions, made: tuple[Profile, ...], timing_cache: bytes
) -> Any:
    trt = flavour.module
    config = builder.create_builder_config()
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.compute_capabilities:
        _set_compute_capabilities(flavour, config, options.compute_capabilities)
    if not flavour.is_rtx:
        cache = config.create_timing_cache(timing_cache)
        # One of another GPU or version is refused, and an empty one taken in its place.
        if not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
    for shapes in made:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            if any(size < 0 for size in tensor.shape):
                wanted = shapes[tensor.name]
                profile.set_shape(tensor.name, wanted.smallest, wanted.usual, wanted.largest)
        config.add_optimization_profile(profile)
    return config


def known_compute_capabilities(flavour: Flavour) -> dict[str, Any]:
    """GPUs that a flavour can be told to build for, as ``"8.6"``; none for classic TensorRT, which takes its own."""
    kinds = getattr(flavour.module, "ComputeCapability", None)
    if kinds is None:
        return {}
    return {f"{int(kind) // 10}.{int(kind) % 10}": kind for kind in kinds.__members__.values() if int(kind) > 1}


def require_served(flavour: Flavour) -> None:
    """Raise if TensorRT-RTX does not serve this GPU: it leaves out those of data centres.

    Raises:
        RuntimeUnavailableError: With the GPUs that it serves.
    """
    known = sorted(map(version_tuple, known_compute_capabilities(flavour)))
    here = flavour.cuda.compute_capability
    if known and here and version_tuple(here) not in known and version_tuple(here) <= known[-1]:
        gpu = f"{flavour.cuda.device}, compute capability {here}"
        served = ", ".join(".".join(map(str, each)) for each in known)
        raise RuntimeUnavailableError(
            f"{flavour.name} {flavour.version} does not serve this GPU ({gpu}): it serves {served} and later ones.",
            hint="Use --runtime tensorrt, or --runtime onnxruntime --device cuda.",
        )


def _set_compute_capabilities(flavour: Flavour, config: Any, wanted: tuple[str, ...]) -> None:
    known = known_compute_capabilities(flavour)
    if not known:
        raise EngineError(
            f"{flavour.name} builds for the GPU it runs on: it takes no list of compute capabilities.",
            hint="Leave the option out, or build with --target rtx.",
        )
    for name in wanted:
        if name not in known:
            raise EngineError(
                f"{flavour.name} {flavour.version} does not build for compute capability {name}: "
                f"it knows {', '.join(known)}."
            )
    config.num_compute_capabilities = len(wanted)
    for index, name in enumerate(wanted):
        config.set_compute_capability(known[name], index)


def _timing(flavour: Flavour, config: Any) -> bytes:
    if flavour.is_rtx:  # its kernels are chosen on the GPU that runs the engine
        return b""
    cache = config.get_timing_cache()
    return bytes(cache.serialize()) if cache is not None else b""


def _parser_errors(parser: Any, log: BuildLog) -> str:
    found = []
    for index in range(min(parser.num_errors, 3)):
        error = parser.get_error(index)
        node = _call(error, "node_name") or f"node {error.node()}"
        operator = _call(error, "node_operator")
        found.append(f"{f'{operator} ' if operator else ''}{node}: {' '.join(str(error.desc()).split())}")
    return "; ".join(found) or log.summary()


def _call(error: Any, name: str) -> str:
    method = getattr(error, name, None)
    return str(method()) if method is not None else ""


def _why_not_built(flavour: Flavour, graph: GraphFile, log: BuildLog, options: BuildOptions) -> EngineError:
    """The error that fits what the builder wrote."""
    text = " ".join(log.errors + log.warnings)
    if _MEMORY.search(text):
        sizes = [int(number) for match in _BYTES.finditer(text) for number in match.groups() if number]
        asked = f"asked for {max(sizes):,} bytes" if sizes else "asked for more than there is"
        there = f"{flavour.cuda.free_bytes:,} of {flavour.cuda.total_bytes:,} bytes were free before it began"
        limit = f"{options.workspace_bytes >> 20:,} MiB" if options.workspace_bytes else "none"
        return EngineError(
            f"{graph.file}: the device's memory does not suffice to build the engine: the builder {asked}; {there}; "
            f"workspace limit: {limit}. ({log.summary()})",
            hint="Close other programs, set a smaller --workspace or --max-batch, or export with a smaller "
            "--max-chunk; on a Jetson, add swap.",
        )
    if _PRECISION.search(text):
        return EngineError(
            f"{graph.file}: the target does not support a precision of the graph: {log.summary()}",
            hint="Export with --dtype fp16, or build for other GPUs.",
        )
    return EngineError(
        f"{flavour.name} {flavour.version} does not compile {graph.file}: {log.summary()}",
        hint="See what the target cannot take, by node: edgemem build --check-only",
    )


def _monitor(trt: Any, progress: Progress, cancelled: threading.Event) -> Any:
    """An ``IProgressMonitor`` that hands on the outermost phases, and stops the build when ``cancelled`` is set."""
    lock = threading.Lock()
    outermost: dict[str, tuple[int, int]] = {}

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                if not parent_phase or parent_phase not in outermost:
                    outermost[phase_name] = (0, num_steps)
                    progress(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                if phase_name in outermost:
                    _, total = outermost[phase_name]
                    progress(phase_name, step, total)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                if phase_name in outermost:
                    _, total = outermost.pop(phase_name)
                    progress(phase_name, total, total)

    return Monitor()


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets: an exception out of a callback would pass through TensorRT's own frames."""
    cancelled = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        cancelled.set()

    on_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    if not on_main or before is signal.SIG_IGN:
        yield cancelled
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield cancelled
    finally:
        signal.signal(signal.SIGINT, before)
