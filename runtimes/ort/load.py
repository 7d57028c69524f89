"""Loading a graph into ONNX Runtime: the options under which a step is fastest and memory smallest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemem.bundle import Bundle, GraphFile
from edgemem.errors import BundleError, EdgememError, RuntimeUnavailableError
from edgemem.manifest import ADOPTED
from edgemem.runtimes import native

_SMALL_BYTES = 16 << 20


@dataclass(frozen=True)
class LoadOptions:
    """How graphs are loaded.

    Attributes:
        threads: Threads of one operator; ``None`` leaves them to the engine.
        exact: Multiply quantised weights in floating point. By default the engine rounds what they are multiplied
            with to 8 bits too, which is several times faster.
        cuda_graphs: On a CUDA device a step is one launch of a CUDA graph, where every operator can be recorded;
            without, its kernels are launched one by one.
        native: Use edgemem's own operators where the bundle has such a form of its graphs, and their library loads.
        profile: Time every operator, into files whose names begin so; an engine's ``end_profiling()`` names its own.
    """

    threads: int | None = None
    exact: bool = False
    cuda_graphs: bool = True
    native: bool = True
    profile: Path | None = None


def load_graph(
    onnxruntime: Any,
    bundle: Bundle,
    folder: Path,
    graph: GraphFile,
    providers: list[Any],
    wanted: LoadOptions,
    operators: Path | None = None,
    *,
    fallback: bool = True,
) -> Any:
    """An ``onnxruntime.InferenceSession`` for one graph of a bundle.

    Args:
        onnxruntime: The package.
        bundle: The bundle.
        folder: Where its files are loaded from.
        graph: Which of its graphs.
        providers: ONNX Runtime's execution providers, with their options.
        wanted: How to load it.
        operators: The library of edgemem's own operators, for the graph's native form; ``None``: the standard form.
        fallback: Whether ONNX Runtime may take the CPU where the first provider fails.

    Raises:
        RuntimeUnavailableError: There are no kernels for the graph's dtype here.
        BundleError: ONNX Runtime cannot load the graph.
    """
    options, disabled = _session_options(onnxruntime, bundle, graph, wanted)
    file = graph.file
    try:
        if operators is not None and graph.native is not None:
            file = graph.native
            options.register_custom_ops_library(str(operators))
            native.next_session(wanted.threads or 0, wanted.exact)
        path = str(folder / file)
        return onnxruntime.InferenceSession(
            path, options, providers=providers, disabled_optimizers=disabled, enable_fallback=int(fallback)
        )
    except Exception as error:
        raise _why_not(onnxruntime, bundle, bundle.file(file), str(error)) from error


def _session_options(onnxruntime: Any, bundle: Bundle, graph: GraphFile, wanted: LoadOptions) -> tuple[Any, list[str]]:
    """Session options, and the optimisers that are left out."""
    options = onnxruntime.SessionOptions()
    if wanted.profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(wanted.profile)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = wanted.threads or 0
    options.inter_op_num_threads = 1
    # A pattern is kept for every chunk length: 50 MB more for a model of 100 MB. A graph of one step has one.
    # A small model keeps little, and gains: its steps take 0.86 of the time.
    small = sum(size for _, size in bundle.manifest.files.values()) <= _SMALL_BYTES
    options.enable_mem_pattern = graph.max_time == 1 or small
    # Pushing transposes through a step's small tensors makes more of them, each a call of its own. An adopted graph is
    # run as those who published it ran it, so that its outputs are the same bits.
    is_adopted = bundle.manifest.source.kind == ADOPTED
    disabled = [] if is_adopted else ["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]
    if graph.min_time > 1 and bundle.manifest.precision.weights is None:
        # The step's engine holds the weights already, packed for its kernels: this one reads them from the file.
        options.add_session_config_entry("session.disable_prepacking", "1")
        if bundle.manifest.precision.dtype != "float16":  # whose weights are widened by folding
            disabled.append("ConstantFolding")  # it would copy a table that is the output layer too, transposed
    options.log_severity_level = 4  # errors come as exceptions; the log would repeat them
    # Lets blockwise 4-bit and 8-bit weights use the int8 kernels; float graphs do not look at it.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1" if wanted.exact else "4")
    if wanted.exact and bundle.manifest.precision.weights == "int8":
        # Of 8 bits there is no such kernel: weights would be widened for every product, not once when they are loaded.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options, disabled


def _why_not(onnxruntime: Any, bundle: Bundle, path: Path, text: str) -> EdgememError:
    """The error that fits what ONNX Runtime said."""
    if bundle.manifest.precision.dtype == "bfloat16" and "NOT_IMPLEMENTED" in text:
        missing = re.search(r"for the node.*|for (\w+)\(\d+\)", text)
        return RuntimeUnavailableError(
            f"ONNX Runtime {onnxruntime.__version__} cannot compute in bfloat16 here: it has no kernel "
            f"{missing[0] if missing else f'({text})'}",
            hint="Export with --dtype fp16 or fp32, run on a GPU, or use runtime='torch' (the reference).",
        )
    old = any(sign in text.lower() for sign in ("opset", "ir version", "ir_version"))
    return BundleError(
        f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {text}",
        hint="Install a newer onnxruntime, or export with a lower opset." if old else None,
    )
