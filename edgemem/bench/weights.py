"""Reads every weight of a bundle once: the least work of a step, as matrix-vector products.

To make one token, a step multiplies every weight matrix with one vector. Each weight is read once, for one
multiplication and one addition, so no step can be faster than reading the weights. How long that takes depends on the
machine, on its caches and on the shapes. It is therefore measured:

* matrices of the same shapes and bytes as the model's, with new values, are multiplied with vectors one after another;
* by numpy (``W @ x``, a BLAS matrix-vector product) and, if ``onnx`` is installed to write the graph, by ONNX Runtime
  in one graph of such products; the faster of the two is the floor;
* in turns with the model's own steps, after warm-up steps like them: if the model fits in a cache, so do the matrices.

A table that is only looked up does not count: a step reads one row of it. A token embedding counts where the output
layer uses the same matrix.
Quantised weights count with their stored bytes: float32 matrices of as many bytes stand for them.

The floor leaves out the state, attention, activations and the calls between operators. A step at 1.1 times its floor
can become much faster only with smaller weights.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from edgemem.bench.subject import has_lookup, is_decoder
from edgemem.bundle import WEIGHTS, Bundle
from edgemem.errors import BundleError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.machine import huge_pages
from edgemem.runtimes.ort.importing import import_onnxruntime
from edgemem.weights_file import tensor_places

_BLAS_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
_ONNX_LIMIT_BYTES = 1_900_000_000
_BLOCK_WIDTH = 512
_DECODER_WEIGHTS = ("embedding", "feature_in.", "layers.", "head")


@dataclass(frozen=True)
class WeightReads:
    """The weights that a step reads.

    Attributes:
        shapes: ``(rows, cols)`` of float32 matrices with as many bytes; each is multiplied with a vector ``[cols]``.
        counted: In words.
    """

    shapes: tuple[tuple[int, int], ...]
    counted: str

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices."""
        return 4 * sum(rows * cols for rows, cols in self.shapes)


def tensors_of(path: Path) -> dict[str, tuple[tuple[int, ...], int]]:
    """Name → (shape, bytes) of a safetensors file's tensors, without reading them.

    Raises:
        BundleError: It is not such a file.
    """
    found = {}
    try:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_slice(name)
                shape, dtype = tuple(tensor.get_shape()), tensor.get_dtype()
                bits = re.search(r"\d+", dtype)  # F32, BF16, I8, F8_E4M3; BOOL takes a byte
                found[name] = shape, -(-math.prod(shape) * int(bits[0] if bits else 8) // 8)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    return found


def weight_reads(bundle: Bundle) -> WeightReads:
    """The weights that one step of a bundle reads as a whole.

    Raises:
        BundleError: The bundle has no weights file, or no matrix in it.
    """
    if WEIGHTS not in bundle.manifest.files:
        raise BundleError("the bundle has no weights file: its weights are in the graph.")
    tensors = tensors_of(bundle.file(WEIGHTS))
    if is_decoder(bundle):
        # Other tensors, such as index tables, were made by the exporter.
        tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(_DECODER_WEIGHTS)}
    looked_up = _looked_up(bundle, tensors)
    shapes = tuple(
        matrix_shape(shape, nbytes)
        for name, (shape, nbytes) in tensors.items()
        if name not in (looked_up or ()) and len(shape) >= 2 and math.prod(shape) > 0
    )
    if not shapes:
        raise BundleError("the weights of the bundle contain no matrix.")
    counted = "every weight matrix once"
    if looked_up is None:
        counted += ", as if none were only looked up: onnx-ir is not installed"
    elif looked_up:
        counted += f", except {', '.join(sorted(looked_up))}, of which a step looks up one row"
    return WeightReads(shapes, counted)


def _looked_up(bundle: Bundle, tensors: Iterable[str]) -> set[str] | None:
    """The tables of which a step reads a row; ``None`` where that cannot be told here."""
    if is_decoder(bundle):
        return {"embedding"} & set(tensors) if has_lookup(bundle) else set()
    try:
        import onnx_ir as ir
    except ImportError:
        return None
    graph = bundle.graph_for(1)
    assert graph is not None
    model = ir.load(bundle.file(graph.file))
    path = bundle.file(WEIGHTS)
    try:
        places = tensor_places(path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    found: set[str] = set()
    for value in model.graph.initializers.values():
        uses, constant = list(value.uses()), value.const_value
        if isinstance(constant, ir.ExternalTensor) and uses and all(_is_lookup(use.node, use.idx) for use in uses):
            found.update(name for name, (start, _) in places.items() if start == constant.offset)
    return found


def _is_lookup(node: Any, at: int) -> bool:
    """Whether a node of a graph looks rows up in its input ``at``."""
    return node.op_type in ("Gather", "GatherND", "GatherBlockQuantized") and at == 0


def matrix_shape(shape: Sequence[int], nbytes: int) -> tuple[int, int]:
    """Rows and columns of a float32 matrix with the bytes of a tensor; it keeps the last axis if possible."""
    elements = -(-nbytes // 4)
    cols = shape[-1] if shape[-1] > 1 and elements >= shape[-1] else min(_BLOCK_WIDTH, elements)
    return max(1, round(elements / cols)), cols


class NumpyPass:
    """One pass over the weights by numpy: ``W @ x`` for each matrix."""

    name = "numpy"

    def __init__(self, reads: WeightReads) -> None:
        rng = np.random.default_rng(0)
        self._vectors = {cols: rng.standard_normal(cols, dtype=np.float32) for _, cols in reads.shapes}
        self._work = [
            (rng.standard_normal((rows, cols), dtype=np.float32), self._vectors[cols], np.empty(rows, np.float32))
            for rows, cols in reads.shapes
        ]

    def step(self) -> None:
        """Multiply every matrix with its vector."""
        for matrix, vector, out in self._work:
            np.dot(matrix, vector, out=out)


class OnnxRuntimePass:
    """One pass over the weights by ONNX Runtime: a graph with one MatMul for each matrix, on bound buffers.

    Args:
        reads: The weights.
        threads: Threads that read them; ``None``: ONNX Runtime chooses.
        vectors: With how many vectors each matrix is multiplied at once.

    Raises:
        MissingDependencyError: onnx or onnxruntime is not installed.
        BundleError: The matrices do not fit in one ONNX file.
    """

    name = "onnxruntime"

    def __init__(self, reads: WeightReads, threads: int | None, vectors: int = 1) -> None:
        if reads.nbytes > _ONNX_LIMIT_BYTES:
            raise BundleError(f"{reads.nbytes} bytes of weights do not fit in one ONNX graph.")
        try:
            import onnx
            from onnx import TensorProto, helper, numpy_helper

            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise MissingDependencyError(
                f"{error.name} is not installed.", hint=how_to_install("onnx", "onnxruntime")
            ) from error
        rng = np.random.default_rng(0)
        nodes, weights, outputs = [], [], []
        for i, (rows, cols) in enumerate(reads.shapes):
            nodes.append(helper.make_node("MatMul", [f"x{cols}", f"w{i}"], [f"y{i}"]))
            weights.append(numpy_helper.from_array(rng.standard_normal((cols, rows), dtype=np.float32), f"w{i}"))
            outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [vectors, rows]))
        widths = sorted({cols for _, cols in reads.shapes})
        inputs = [helper.make_tensor_value_info(f"x{cols}", TensorProto.FLOAT, [vectors, cols]) for cols in widths]
        graph = helper.make_graph(nodes, "floor", inputs, outputs, initializer=weights)
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        regions = huge_pages.anonymous_regions()
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        huge_pages.join_pages_since(regions)  # as the runtime does
        self._binding = self._session.io_binding()
        self._keep = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((vectors, cols), np.float32)) for cols in widths]
        self._keep_out = [np.empty((vectors, rows), np.float32) for rows, _ in reads.shapes]
        for cols, value in zip(widths, self._keep, strict=True):
            self._binding.bind_ortvalue_input(f"x{cols}", value)
        for i, out in enumerate(self._keep_out):
            self._binding.bind_output(f"y{i}", "cpu", 0, np.float32, out.shape, out.ctypes.data)

    def step(self) -> None:
        """Multiply every matrix with its vectors."""
        self._session.run_with_iobinding(self._binding)


@contextlib.contextmanager
def blas_threads(threads: int | None) -> Iterator[str | None]:
    """Give numpy's matrix products as many threads as the engine, inside the block.

    Args:
        threads: Threads of the engine; ``None``: the engine and numpy choose.

    Yields:
        Why it was not possible; ``None``: it was.
    """
    by_environment = next((os.environ[name] for name in _BLAS_THREAD_VARIABLES if name in os.environ), None)
    if threads is None or by_environment == str(threads) or os.cpu_count() == 1:
        yield None
        return
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield (
            f"numpy has already set its number of threads; set OMP_NUM_THREADS={threads} before the start, "
            "or install threadpoolctl"
        )
        return
    with threadpool_limits(limits=threads, user_api="blas"):
        yield None
