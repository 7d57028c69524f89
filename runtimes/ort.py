"""ONNX Runtime, bound to an arena: a step writes the token, runs, and appends; it allocates nothing.

Every input and output of a graph is bound to an address in the stream's arena (:mod:`edgemem.runtimes.arena`). The
replaced states swap places after every call, so the bindings of a step exist twice, prepared once. A ring is bound as
an input at one address and changed there between two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from edgemem.bundle import Bundle, GraphFile
from edgemem.contract import OUTPUT_INDICES, POSITION, StateSpec, numpy_dtype
from edgemem.errors import BundleError, EdgememError, RuntimeUnavailableError
from edgemem.runtimes import bfloat16, huge_pages
from edgemem.runtimes.arena import Arena, Place
from edgemem.runtimes.memory import Array, Block, HostMemory, Memory
from edgemem.runtimes.ort_graph import check_graph
from edgemem.runtimes.session import Session, Stream

_ONNX_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16: numpy has no such dtype
_CUDA = "CUDAExecutionProvider"


def open_session(bundle: Bundle, *, threads: int | None, device: str, guard: bool) -> OrtSession:
    """Load the bundle's graphs; see :func:`edgemem.open`."""
    return OrtSession(bundle, threads=threads, device=device, guard=guard)


class OrtSession(Session):
    """A bundle loaded into ONNX Runtime.

    Attributes:
        memory: Where its streams' arenas lie.
        engines: The ``onnxruntime.InferenceSession`` of each graph file.
    """

    runtime = "onnxruntime"

    def __init__(
        self, bundle: Bundle, *, threads: int | None = None, device: str = "auto", guard: bool = False
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise RuntimeUnavailableError(
                f"onnxruntime cannot be imported: {error}", hint='pip install "edgemem[onnxruntime]"'
            ) from error
        memory, providers = _choose(onnxruntime.get_available_providers(), device)
        super().__init__(bundle.contract, bundle, device=memory.device, guard=guard)
        self.memory = memory
        self.engines: dict[str, Any] = {}
        regions = huge_pages.anonymous_regions()
        for graph in bundle.manifest.graphs:
            engine = _load(onnxruntime, bundle, graph, providers, threads)
            if memory.device == "cuda" and engine.get_providers()[0] != _CUDA:
                if device == "cuda":
                    raise _no_cuda(f"ONNX Runtime could not start {_CUDA}")
                self.memory, self.device, providers = HostMemory(), "cpu", ["CPUExecutionProvider"]
                memory = self.memory
            check_graph(engine, bundle.contract, graph)
            self.engines[graph.file] = engine
        if memory.on_host:
            huge_pages.join_pages_since(regions)

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


class OrtStream(Stream):
    """A stream whose states all have a fixed size."""

    _session: OrtSession

    def __init__(self, session: OrtSession, batch: int) -> None:
        self._arena = arena = Arena(session.memory, session.contract, batch, session.max_time)
        super().__init__(session, batch, arena.positions, arena.step_input)
        self._engine_for: Callable[[int], Any] = session.engine_for
        self._run: Callable[[Any], None] = session.engine_for(1).run_with_iobinding
        self._step_bindings = tuple(self._bind(1, 1, side, arena.block, arena.layout.step_output) for side in (0, 1))
        self._chunk_bindings: dict[int, Any] = {}
        self._bfloat16_output = session.contract.output.dtype == "bfloat16"
        self._direct = session.memory.on_host and not self._bfloat16_output
        self._step_output = arena.step_output[:, 0]  # [B, *output.shape]

    def _bind(self, time: int, wanted: int, side: int, output_block: Block, output: Place) -> Any:
        """An IOBinding for calls of ``time`` steps that compute ``wanted`` outputs, reading side ``side``."""
        contract, arena = self._contract, self._arena
        layout, device = arena.layout, self._session.device
        binding = self._engine_for(time).io_binding()
        data = layout.step_input if time == 1 else _shortened(layout.chunk_input, time)
        inputs = {contract.input.name: (data, contract.input.dtype)}
        if contract.position == "input":
            inputs[POSITION] = (layout.positions, "int64")
        if contract.output_indices:
            inputs[OUTPUT_INDICES] = (
                layout.step_indices if time == 1 else Place(layout.chunk_indices.offset, (wanted,), np.dtype(np.int64)),
                "int64",
            )
        entries = layout.entries(time)
        outputs = {}
        for state in contract:
            inputs[state.input_name] = (arena.past(state, side), state.dtype)
            new = entries[state.name] if state.update == "append" else layout.replaced[1 - side][state.name]
            outputs[state.output_name] = (new, state.dtype)
        for name, (place, dtype) in inputs.items():
            binding.bind_input(name, device, 0, _element(dtype), place.shape, arena.address(place))
        for name, (place, dtype) in outputs.items():
            binding.bind_output(name, device, 0, _element(dtype), place.shape, arena.address(place))
        address = output_block.address + output.offset
        binding.bind_output(contract.output.name, device, 0, _element(contract.output.dtype), output.shape, address)
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
            return bfloat16.decode(self._step_output)
        return self._step_output

    def _compute_chunk(self, data: Array, every: bool) -> Array:
        arena, contract = self._arena, self._contract
        time = data.shape[1]
        if not contract.output_indices:
            indices, wanted = None, time
        else:
            indices = np.arange(time) if every else np.array([time - 1])
            wanted = len(indices)
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
        return bfloat16.decode(output) if self._bfloat16_output else output

    def _failed(self, error: Exception) -> EdgememError:
        if isinstance(error, EdgememError):
            return error
        return EdgememError(f"ONNX Runtime failed at position {self.position}: {error}")

    def _new_state(self, time: int) -> Iterator[tuple[StateSpec, Array]]:
        arena = self._arena
        entries = arena.layout.entries(time)
        for state in self._contract:
            place = entries[state.name] if state.update == "append" else arena.past(state, 1 - arena.side)
            yield state, arena.read(place)

    def _commit(self, time: int) -> None:
        self._arena.commit(time, self._common)

    def _read(self, state: StateSpec) -> Array:
        return self._arena.read(self._arena.past(state, self._arena.side))

    def _write(self, state: StateSpec, value: Array) -> None:
        self._arena.write(self._arena.past(state, self._arena.side), value)

    def _reset_rows(self, rows: Sequence[int] | None) -> None:
        self._arena.reset(rows)

    def _copy_rows(self, source: Stream, rows: Sequence[int] | None) -> None:
        if not isinstance(source, OrtStream):
            raise TypeError(f"cannot copy from a {type(source).__name__}")
        if rows is None:
            self._arena.copy_state(source._arena)
        else:
            self._arena.copy_rows(source._arena, rows)

    def _close(self) -> None:
        self._run = _closed
        self._step_bindings = (None, None)
        self._chunk_bindings.clear()
        self._engine_for = _closed


def _closed(_: Any) -> None:
    raise EdgememError("the session is closed.", hint="Open the bundle again.")


def _element(dtype: str) -> Any:
    return _ONNX_BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype)


def _shortened(place: Place, time: int) -> Place:
    """The place of a chunk of ``time`` steps at the start of that of the longest chunk."""
    return Place(place.offset, (place.shape[0], time, *place.shape[2:]), place.dtype)


def _load(onnxruntime: Any, bundle: Bundle, graph: GraphFile, providers: list[Any], threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.inter_op_num_threads = 1
    # A pattern would be kept for every chunk length: 50 MB more for a model of 100 MB, and no faster.
    options.enable_mem_pattern = False
    options.log_severity_level = 4  # errors come as exceptions; the log would repeat them
    # Lets blockwise 4-bit and 8-bit weights use the int8 kernels; float graphs do not look at it.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    path = bundle.file(graph.file)
    try:
        # Pushing transposes through a step's small tensors makes more of them, each a call of its own.
        return onnxruntime.InferenceSession(
            str(path),
            options,
            providers=providers,
            disabled_optimizers=["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"],
        )
    except Exception as error:
        text = str(error)
        old = any(sign in text.lower() for sign in ("opset", "ir version", "ir_version"))
        raise BundleError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {text}",
            hint="Install a newer onnxruntime, or export with a lower opset." if old else None,
        ) from error


def _choose(available: list[str], device: str) -> tuple[Memory, list[Any]]:
    """The memory and the providers for ``device``."""
    cpu = ["CPUExecutionProvider"]
    if device == "cpu" or (device == "auto" and _CUDA not in available):
        return HostMemory(), list(cpu)
    if _CUDA not in available:
        raise _no_cuda(f"this ONNX Runtime has no {_CUDA}, only {', '.join(available)}")
    from edgemem.runtimes.cuda import CudaMemory

    try:
        memory = CudaMemory()
    except RuntimeUnavailableError:
        if device == "cuda":
            raise
        return HostMemory(), list(cpu)
    # One stream for the engine's kernels and the arena's copies keeps them in order without synchronising.
    # TF32 keeps 10 bits of a mantissa: float32 summaries and running means need all 23.
    options = {"device_id": "0", "user_compute_stream": str(memory.stream), "use_tf32": "0"}
    return memory, [(_CUDA, options), *cpu]


def _no_cuda(why: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError(
        f"device 'cuda' cannot be used: {why}.",
        hint='pip uninstall onnxruntime; pip install "edgemem[gpu]"   (or use device="cpu")',
    )
