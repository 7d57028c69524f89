"""What a check of a bundle in reduced precision needs: a reference, an engine that computes exactly, and tolerances.

Two questions are kept apart. Does the graph compute what the model computes *with the weights that the bundle holds*?
That is answered as for float32: by a reference in float32 arithmetic, and an engine that rounds no more than the graph
says. And how far are the outputs, as a user gets them, from those of the float32 model?
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from safetensors import safe_open

from edgemem.bundle import WEIGHTS, Bundle
from edgemem.contract import POSITION, Contract
from edgemem.errors import BundleError, VerificationError
from edgemem.export.parameters import substituted
from edgemem.export.passes.emulate_bfloat16 import emulate_bfloat16
from edgemem.export.source import Source
from edgemem.export.stored import StoredWeights, half_key
from edgemem.models.blockwise import read_matrix
from edgemem.models.checkpoint import load_weights
from edgemem.models.decoder import Decoder
from edgemem.precision import Precision
from edgemem.runtimes import Session
from edgemem.runtimes.ort.engine import OrtSession

_HALF = {ir.DataType.FLOAT16: 2**11, ir.DataType.BFLOAT16: 2**8}
_WHOLE = (ir.DataType.INT64, ir.DataType.INT32)
_COMPARISONS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")
_VALUES: dict[str, tuple[int, ...]] = {
    "ConstantOfShape": (),
    "Expand": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Reshape": (0,),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
    "Shape": (),
    "Slice": (0,),
    "Where": (1, 2),
}
"""Of operators that only look at some inputs: those whose values come out."""
_ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
_DTYPE_CHANGE = {"float32": 0.0, "float16": 0.01, "bfloat16": 0.05}
_WEIGHTS_CHANGE = {None: 0.0, "int8": 0.03, "int4": 0.3}


def rounding_tolerance(precision: Precision) -> float:
    """Largest difference allowed between the graph's outputs and a float32 reference with the bundle's own weights.

    In the scale of ``1 + |output|``.
    """
    return _ROUNDING[precision.dtype]


def change_tolerance(precision: Precision) -> float:
    """Largest change of the outputs that is allowed against the float32 model, see :func:`change`."""
    return _DTYPE_CHANGE[precision.dtype] + _WEIGHTS_CHANGE[precision.weights]


def change(got: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Root mean square of ``got - wanted`` as a share of the standard deviation of ``wanted``, both ``[B, S, ...]``."""
    # Step by step: logits of a large vocabulary are many, and float64 copies of them twice as many.
    mean = sum(float(w.sum(dtype=np.float64)) for w in wanted.swapaxes(0, 1)) / wanted.size
    error = spread = 0.0
    for g, w in zip(got.swapaxes(0, 1), wanted.swapaxes(0, 1), strict=True):
        wide = w.astype(np.float64)
        error += float(((g - wide) ** 2).sum())
        spread += float(((wide - mean) ** 2).sum())
    return math.sqrt(error / wanted.size) / max(math.sqrt(spread / wanted.size), 1e-12)


def same_states(a: Contract, b: Contract, precision: Precision) -> bool:
    """Whether two contracts carry the same states, but for the dtype that the precision gives to some."""

    def plain(contract: Contract) -> list[object]:
        narrow = ("float32", precision.dtype)
        return [replace(s, dtype="float32" if s.dtype in narrow else s.dtype) for s in contract.states]

    return plain(a) == plain(b)


def check_counters(model: ir.Model, file: str) -> None:
    """No count may go from whole numbers to half precision.

    float16 counts to 2 048, bfloat16 to 256: a counter that goes through them stands still from there on. Streams of a
    few hundred steps may not show it. So whatever follows from a position in whole numbers is traced through the graph.

    Args:
        model: A graph of the bundle.
        file: Its name.

    Raises:
        VerificationError: Such a value is cast to half precision.
    """
    _follow_counts(model.graph, {v for v in model.graph.inputs if v.name in (POSITION, f"past.{POSITION}")}, file)


def _follow_counts(graph: ir.Graph, counts: set[ir.Value], file: str) -> None:
    """Add to ``counts`` what a graph computes from them in whole numbers; see :func:`check_counters`."""
    for node in graph:  # in topological order
        if node.op_type == "Scan":
            body = node.attributes["body"].as_graph()
            inside = counts | {inner for inner, outer in zip(body.inputs, node.inputs, strict=True) if outer in counts}
            _follow_counts(body, inside, file)
            counts.update(outer for inner, outer in zip(body.outputs, node.outputs, strict=True) if inner in inside)
            continue
        values = [node.inputs[i] for i in _VALUES[node.op_type]] if node.op_type in _VALUES else node.inputs
        if counts.isdisjoint(value for value in values if value is not None):
            continue
        if node.op_type == "Cast":
            to = ir.DataType(node.attributes["to"].as_int())
            if to in _HALF:
                raise VerificationError(
                    f"{file}: {node.outputs[0].name} casts a position to {to.name.lower()}, which counts to "
                    f"{_HALF[to]:,} and then stands still.",
                    hint="Keep counters in int64, and what is computed from them in float32.",
                )
            if to not in _WHOLE:
                continue
        elif node.op_type in _COMPARISONS:
            continue
        counts.update(node.outputs)


@contextlib.contextmanager
def with_stored_weights(bundle: Bundle, source: Source) -> Iterator[Source]:
    """The source in float32 arithmetic, with the weights as the bundle holds them, inside the block.

    Args:
        bundle: The bundle.
        source: What it was exported from.
    """
    precision = bundle.manifest.precision
    if precision.is_plain:
        yield source
    elif bundle.manifest.model is not None:
        module = load_weights(Decoder(replace(bundle.manifest.model, dtype="float32")), bundle.file(WEIGHTS))
        yield replace(source, module=module, config=module.config)
    else:
        stored = read_stored(bundle, precision)
        with substituted(source.module, stored.multiplied(), stored.looked_up()):
            yield source


def read_stored(bundle: Bundle, precision: Precision) -> StoredWeights:
    """The weights that a bundle's graphs hold in other dtypes than its module does.

    Raises:
        BundleError: The weights file does not hold what the manifest says.
    """
    stored = StoredWeights(left=dict(precision.left))
    with safe_open(bundle.file(WEIGHTS), framework="pt") as file:
        names = set(file.keys())

        def read(name: str) -> Any:
            return file.get_tensor(name) if name in names else None

        for name in precision.matrices:
            scale, packed = read(f"{name}.scale"), read(f"{name}.{precision.weights}")
            if scale is None or packed is None:
                raise BundleError(f"{bundle.path}: {WEIGHTS} holds no {name}.scale or no {name}.{precision.weights}.")
            rows = packed.numel() * (2 if precision.weights == "int4" else 1) // scale.shape[1]
            matrix = read_matrix(name, (rows, scale.shape[1]), read)
            if matrix is None:
                raise BundleError(f"{bundle.path}: {name} in {WEIGHTS} is no matrix of {precision.weights} blocks.")
            stored.matrices[name], stored.transposed[name] = matrix, name in precision.transposed
        for name in precision.halved:
            transposed = name in precision.transposed
            half = read(half_key(name, transposed=transposed, looked_up=name in precision.lookups))
            if half is not None:
                stored.halved[name], stored.transposed[name] = half, transposed
        stored.lookups.update({name: read(name) for name in precision.lookups if name in names})
    return stored


@contextlib.contextmanager
def exact_session(bundle: Bundle, threads: int) -> Iterator[Session]:
    """The bundle in an engine that rounds where its graphs say so, and nowhere else; closed at the end of the block."""
    precision = bundle.manifest.precision
    with contextlib.ExitStack() as stack:
        if precision.dtype == "bfloat16":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgemem-bfloat16-")))
            bundle = _emulated(bundle, folder)
        yield stack.enter_context(OrtSession(bundle, threads=threads, device="cpu", exact=True))


@contextlib.contextmanager
def running_session(bundle: Bundle, threads: int) -> Iterator[Session]:
    """The bundle as ONNX Runtime runs it for users; where it cannot (bfloat16), as :func:`exact_session` does."""
    if bundle.manifest.precision.dtype == "bfloat16":
        with exact_session(bundle, threads) as session:
            yield session
    else:
        with OrtSession(bundle, threads=threads, device="cpu") as session:
            yield session


def in_float32(source: Source) -> Source:
    """The source computing in float32: what a precision changes."""
    if not isinstance(source.module, Decoder):
        return source
    module = source.module.converted("float32")
    return replace(source, module=module, config=module.config)


def _emulated(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with its graphs emulating bfloat16, in another folder."""
    for graph in bundle.manifest.graphs:
        twin = emulate_bfloat16(onnx.load(bundle.file(graph.file), load_external_data=False))
        (folder / graph.file).write_bytes(twin.SerializeToString())
    if WEIGHTS in bundle.manifest.files:
        weights = bundle.file(WEIGHTS)
        try:
            os.link(weights, folder / WEIGHTS)
        except OSError:  # another file system
            shutil.copyfile(weights, folder / WEIGHTS)
    return replace(bundle, path=folder)
