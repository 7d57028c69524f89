"""Two files with a spectral mask between them as one graph.

The first takes the magnitudes of a frame's spectrum and gives a mask; the second takes the frame whose spectrum is
masked, and gives a frame. For a frame ``x`` of ``n`` samples, and ``F`` the transform ``n → n / 2 + 1``::

    y = second(F⁻¹(first(|F x|) · F x))

The transforms are computed in float64, as numpy computes them for the loops that publishers show. In the merged graph
they are matrix products, which every engine has. With ``n = n₁ n₂``, and ``W_m = exp(-2πi / m)``, the spectrum is::

    X[k₁ + n₁ k₂] = Σ_b W_n^(b k₁) (Σ_a x[n₂ a + b] W_n₁^(a k₁)) W_n₂^(b k₂)

which is two small products with a factor for each element between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemem.adopt.opset import at_opset, opset_of
from edgemem.adopt.subject import Subject
from edgemem.errors import ExportError

Array = NDArray[Any]
FRAME = "samples"
SECOND = "second."
"""What names of the second file begin with, where both files use one name."""
_GLUE = "spectral."


@dataclass(frozen=True)
class MaskedPair:
    """The two original graphs with numpy's transforms between them, called as one.

    Attributes:
        first: Takes magnitudes, gives a mask.
        second: Takes masked frames.
        prefix: What the names of the second's inputs and outputs begin with in a call.
    """

    first: Subject
    second: Subject
    prefix: str

    @property
    def outputs(self) -> list[str]:
        """The result, and the new states."""
        states = [pair.output for pair in self.first.pairs]
        return [*(self.prefix + name for name in self.second.outputs), *states]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name."""
        first, second = self.first, self.second
        spectrum = np.fft.rfft(feeds[FRAME].astype(np.float64), axis=-1)
        magnitudes = np.abs(spectrum).astype(np.float32).reshape(first.data[0].shape(1, 1))
        states = {pair.input: feeds[pair.input] for pair in first.pairs}
        made = first.call({first.data[0].name: magnitudes}, states)
        masked = made[first.results[0]].reshape(spectrum.shape) * spectrum
        samples = np.fft.irfft(masked, feeds[FRAME].shape[-1], axis=-1).astype(np.float32)
        states = {pair.input: feeds[self.prefix + pair.input] for pair in second.pairs}
        found = second.call({second.data[0].name: samples.reshape(second.data[0].shape(1, 1))}, states)
        found = {self.prefix + name: value for name, value in found.items()}
        return {**found, **{pair.output: made[pair.output] for pair in first.pairs}}


def merge(first: Subject, second: Subject, frame: int, *, in_float32: bool) -> tuple[ir.Model, MaskedPair]:
    """One model of both, whose data input :data:`FRAME` is a frame ``[1, frame]``; and the originals, called alike.

    Args:
        first: The graph that gives the mask.
        second: The graph that takes the masked frame.
        frame: Samples of a frame.
        in_float32: Whether the model computes the transforms in float32, for engines that do not have float64.

    Raises:
        ExportError: The graphs do not take a spectrum and a frame of that many samples, or cannot have one opset.
    """
    _check(first, "magnitudes", frame // 2 + 1)
    _check(second, "samples", frame)
    opset = max(opset_of(first.model), opset_of(second.model))
    one, two = (ir.to_proto(at_opset(subject.model, opset)) for subject in (first, second))
    ours = {value.name for value in (*one.graph.input, *one.graph.output)}
    clash = bool(ours & {value.name for value in (*two.graph.input, *two.graph.output)})
    two = onnx.compose.add_prefix(two, SECOND, rename_inputs=clash, rename_outputs=clash)
    pair = MaskedPair(first, second, SECOND if clash else "")
    made = {"opset_imports": [helper.make_opsetid("", opset)], "ir_version": one.ir_version}
    glue = _Glue(frame, TensorProto.FLOAT if in_float32 else TensorProto.DOUBLE)
    before = helper.make_model(glue.analysis(first.data[0].shape(1, 1)), **made)
    between = helper.make_model(glue.synthesis(second.data[0].shape(1, 1)), **made)
    two.ir_version = one.ir_version
    joined = before
    spectrum = [(f"{_GLUE}spectrum", f"{_GLUE}spectrum.in")]
    for part, links in (
        (one, [(f"{_GLUE}magnitudes", first.data[0].name)]),
        (between, [(first.results[0], f"{_GLUE}mask"), *spectrum]),
        (two, [(f"{_GLUE}masked", pair.prefix + second.data[0].name)]),
    ):
        joined = onnx.compose.merge_models(joined, part, io_map=links)
    return ir.from_proto(joined), pair


def _check(subject: Subject, what: str, size: int) -> None:
    if len(subject.data) != 1 or len(subject.results) != 1 or np.prod(subject.data[0].shape(1, 1)) != size:
        shapes = "; ".join(str(data.tensor) for data in subject.data)
        raise ExportError(
            f"--between spectral-mask wants a graph that takes and gives {size} {what}; this one takes {shapes}.",
            hint="--takes and --context must add up to the frame. Name the files in their order.",
        )


class _Glue:
    """The transforms as graphs.

    Args:
        frame: Samples of a frame.
        dtype: ONNX's number of the float type in which they are computed.
    """

    def __init__(self, frame: int, dtype: int) -> None:
        self._dtype, self._numpy = dtype, helper.tensor_dtype_to_np_dtype(dtype)
        self._frame, self._bins = frame, frame // 2 + 1
        self._n1 = max(d for d in range(1, math.isqrt(frame) + 1) if frame % d == 0)
        self._n2 = frame // self._n1
        self._k2 = (self._bins - 1) // self._n1 + 1  # columns that hold the frequencies from 0 to frame / 2
        self._inner = _turns(self._n1, self._n1, self._n1)
        self._factors = _turns(frame, self._n1, self._n2)
        self._outer = _turns(self._n2, self._n2, self._k2)

    def analysis(self, shape: Sequence[int]) -> onnx.GraphProto:
        """A frame → real and imaginary part of its spectrum ``[2, frame / 2 + 1]``, and magnitudes of a shape."""
        (ci, si), (cf, sf), (co, so) = self._inner, self._factors, self._outer
        k1, k2 = np.arange(self._bins) % self._n1, np.arange(self._bins) // self._n1
        places = k1 * 2 * self._k2 + k2
        constants = {
            "rows": np.array([self._n1, self._n2]),
            "inner": np.stack([ci, -si, ci, -si], 1).reshape(-1, self._n1),
            "wide": np.array([self._n1, -1]),
            "factors": np.stack([cf, sf, -sf, cf], 1).reshape(self._n1, -1),
            "outer": np.block([[co, -so], [co, -so], [so, co], [so, co]]),
            "flat": np.array([-1]),
            "places": np.stack([places, places + self._k2]),
            "both": np.ones((1, 2)),
            "shape": np.array(shape),
        }
        nodes = [
            _node("Cast", FRAME, "x", to=self._dtype),
            _node("Reshape", "x", "rows", "x.rows"),
            _node("MatMul", "inner", "x.rows", "turned"),
            _node("Reshape", "turned", "wide", "turned.wide"),
            _node("Mul", "turned.wide", "factors", "factored"),
            _node("MatMul", "factored", "outer", "transformed"),
            _node("Reshape", "transformed", "flat", "transformed.flat"),
            _node("Gather", "transformed.flat", "places", "spectrum"),
            _node("Mul", "spectrum", "spectrum", "squares"),
            _node("MatMul", "both", "squares", "power"),
            _node("Sqrt", "power", "magnitude"),
            _node("Cast", "magnitude", "magnitude.single", to=TensorProto.FLOAT),
            _node("Reshape", "magnitude.single", "shape", "magnitudes"),
        ]
        outputs = {"magnitudes": (TensorProto.FLOAT, shape), "spectrum": (self._dtype, (2, self._bins))}
        return self._graph("analysis", nodes, {FRAME: (TensorProto.FLOAT, (1, self._frame))}, outputs, constants)

    def synthesis(self, shape: Sequence[int]) -> onnx.GraphProto:
        """A mask and a spectrum → the frame of a shape whose spectrum is the masked one."""
        (ci, si), (cf, sf), (co, so) = self._inner, self._factors, self._outer.transpose(0, 2, 1)
        k = np.arange(self._n1)[:, None] + self._n1 * np.arange(self._k2)
        weights = np.where((k == 0) | (2 * k == self._frame), 1, 2) / self._frame  # the others stand for two
        places = np.minimum(k, self._bins - 1)
        constants = {
            "row": np.array([1, -1]),
            "back.places": np.concatenate([places, places + self._bins], axis=1),
            "weights": np.tile(np.where(k < self._bins, weights, 0), 2),
            "back.outer": np.block([[co, so, co, so], [-so, co, -so, co]]),
            "back.factors": np.stack([cf, -sf, sf, cf], 1).reshape(self._n1, -1),
            "back.rows": np.array([4 * self._n1, self._n2]),
            "back.inner": np.stack([ci, ci, -si, -si], 1).reshape(-1, self._n1).T,
            "back.flat": np.array([-1]),
            "frame": np.array(shape),
        }
        nodes = [
            _node("Reshape", "mask", "row", "mask.row"),
            _node("Cast", "mask.row", "mask.cast", to=self._dtype),
            _node("Mul", "mask.cast", "spectrum.in", "masked.spectrum"),
            _node("Reshape", "masked.spectrum", "back.flat", "masked.flat"),
            _node("Gather", "masked.flat", "back.places", "masked.placed"),
            _node("Mul", "masked.placed", "weights", "masked.weighted"),
            _node("MatMul", "masked.weighted", "back.outer", "back.turned"),
            _node("Mul", "back.turned", "back.factors", "back.factored"),
            _node("Reshape", "back.factored", "back.rows", "back.wide"),
            _node("MatMul", "back.inner", "back.wide", "y"),
            _node("Cast", "y", "y.single", to=TensorProto.FLOAT),
            _node("Reshape", "y.single", "frame", "masked"),
        ]
        inputs = {
            f"{_GLUE}mask": (TensorProto.FLOAT, None),
            f"{_GLUE}spectrum.in": (self._dtype, (2, self._bins)),
        }
        return self._graph("synthesis", nodes, inputs, {"masked": (TensorProto.FLOAT, shape)}, constants)

    def _graph(
        self,
        name: str,
        nodes: Sequence[onnx.NodeProto],
        inputs: Mapping[str, tuple[int, Sequence[int] | None]],
        outputs: Mapping[str, tuple[int, Sequence[int]]],
        constants: Mapping[str, Array],
    ) -> onnx.GraphProto:
        stored = [
            numpy_helper.from_array(value.astype(np.int64 if value.dtype.kind == "i" else self._numpy), _GLUE + key)
            for key, value in constants.items()
        ]
        return helper.make_graph(
            list(nodes),
            name,
            [helper.make_tensor_value_info(key, *value) for key, value in inputs.items()],
            [helper.make_tensor_value_info(_GLUE + key, *value) for key, value in outputs.items()],
            stored,
        )


def _turns(n: int, rows: int, columns: int) -> Array:
    """Cosine and sine of ``2 π row column / n``, ``[2, rows, columns]``."""
    angles = 2 * np.pi * (np.outer(np.arange(rows), np.arange(columns)) % n) / n
    return np.stack([np.cos(angles), np.sin(angles)])


def _node(operator: str, *names: str, **attributes: Any) -> onnx.NodeProto:
    """A node; its last name is its output."""
    *inputs, output = (name if name == FRAME else _GLUE + name for name in names)
    return helper.make_node(operator, inputs, [output], name=f"{_GLUE}{operator}.{names[-1]}", **attributes)
