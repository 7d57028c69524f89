"""Two files with a spectral mask between them as one graph.

The first takes the magnitudes of a frame's spectrum and gives a mask; the second takes the frame whose spectrum is
masked, and gives a frame. For a frame ``x`` of ``n`` samples, and ``F`` the transform ``n → n / 2 + 1``::

    y = second(F⁻¹(first(|F x|) · F x))

In the merged graph the transforms are products with matrices of sines and cosines, which every engine has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgemem.adopt.subject import Subject
from edgemem.errors import ExportError

Array = NDArray[Any]
FRAME = "samples"
_PREFIX, _GLUE = "second.", "spectral."


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
        spectrum = np.fft.rfft(feeds[FRAME], axis=-1)
        magnitudes = np.abs(spectrum).astype(np.float32).reshape(first.data[0].shape(1, 1))
        states = {pair.input: feeds[pair.input] for pair in first.pairs}
        made = first.call({first.data[0].name: magnitudes}, states)
        masked = made[first.results[0]].reshape(spectrum.shape) * spectrum
        samples = np.fft.irfft(masked, feeds[FRAME].shape[-1], axis=-1).astype(np.float32)
        states = {pair.input: feeds[self.prefix + pair.input] for pair in second.pairs}
        found = second.call({second.data[0].name: samples.reshape(second.data[0].shape(1, 1))}, states)
        found = {self.prefix + name: value for name, value in found.items()}
        return {**found, **{pair.output: made[pair.output] for pair in first.pairs}}


def merge(first: Subject, second: Subject, frame: int) -> tuple[ir.Model, MaskedPair]:
    """One model of both, whose data input :data:`FRAME` is a frame ``[1, frame]``; and the originals, called alike.

    Raises:
        ExportError: The graphs do not take a spectrum and a frame of that many samples, or their opsets differ.
    """
    _check(first, "magnitudes", frame // 2 + 1)
    _check(second, "samples", frame)
    one, two = (ir.to_proto(subject.model) for subject in (first, second))
    opset, other = (max(o.version for o in model.opset_import if not o.domain) for model in (one, two))
    if opset != other:
        raise ExportError(
            f"the files have the opsets {opset} and {other}.", hint="Convert one: onnx.version_converter."
        )
    ours = {value.name for value in (*one.graph.input, *one.graph.output)}
    clash = bool(ours & {value.name for value in (*two.graph.input, *two.graph.output)})
    two = onnx.compose.add_prefix(two, _PREFIX, rename_inputs=clash, rename_outputs=clash)
    pair = MaskedPair(first, second, _PREFIX if clash else "")
    made = {"opset_imports": [helper.make_opsetid("", opset)], "ir_version": one.ir_version}
    before = helper.make_model(_analysis(frame, first.data[0].shape(1, 1)), **made)
    between = helper.make_model(_synthesis(frame, second.data[0].shape(1, 1)), **made)
    two.ir_version = one.ir_version
    joined = before
    spectrum = [(_GLUE + name, f"{_GLUE}{name}.in") for name in ("real", "imaginary")]
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


def _analysis(frame: int, shape: Sequence[int]) -> onnx.GraphProto:
    """A frame → real and imaginary part of its spectrum ``[1, frame / 2 + 1]``, and magnitudes of a shape."""
    angles = _angles(frame)
    nodes = [
        _node("MatMul", FRAME, "cosines", "real"),
        _node("MatMul", FRAME, "sines", "imaginary"),
        _node("Mul", "real", "real", "real.squared"),
        _node("Mul", "imaginary", "imaginary", "imaginary.squared"),
        _node("Add", "real.squared", "imaginary.squared", "power"),
        _node("Sqrt", "power", "flat"),
        _node("Reshape", "flat", "shape", "magnitudes"),
    ]
    bins = frame // 2 + 1
    outputs = {"magnitudes": shape, "real": (1, bins), "imaginary": (1, bins)}
    constants = {"cosines": np.cos(angles), "sines": -np.sin(angles), "shape": np.array(shape)}
    return _graph("analysis", nodes, {FRAME: (1, frame)}, outputs, constants)


def _synthesis(frame: int, shape: Sequence[int]) -> onnx.GraphProto:
    """A mask and a spectrum → the frame of a shape whose spectrum is the masked one."""
    bins = frame // 2 + 1
    weights = np.full((bins, 1), 2 / frame)
    weights[[0, -1]] = 1 / frame  # the other frequencies stand for two
    angles = _angles(frame).T
    nodes = [
        _node("Reshape", "mask", "bins", "mask.flat"),
        _node("Mul", "mask.flat", "real.in", "real.masked"),
        _node("Mul", "mask.flat", "imaginary.in", "imaginary.masked"),
        _node("MatMul", "real.masked", "cosines.back", "even"),
        _node("MatMul", "imaginary.masked", "sines.back", "odd"),
        _node("Add", "even", "odd", "masked.flat"),
        _node("Reshape", "masked.flat", "frame", "masked"),
    ]
    inputs = {f"{_GLUE}mask": None, f"{_GLUE}real.in": (1, bins), f"{_GLUE}imaginary.in": (1, bins)}
    constants = {
        "bins": np.array([1, bins]),
        "cosines.back": weights * np.cos(angles),
        "sines.back": -weights * np.sin(angles),
        "frame": np.array(shape),
    }
    return _graph("synthesis", nodes, inputs, {"masked": shape}, constants)


def _angles(frame: int) -> Array:
    """``2 π n k / frame`` for sample n and frequency k, ``[frame, frame / 2 + 1]``."""
    turns = np.outer(np.arange(frame), np.arange(frame // 2 + 1)) % frame
    return np.asarray(2 * np.pi * turns / frame)


def _node(operator: str, *names: str) -> onnx.NodeProto:
    """A node; its last name is its output."""
    *inputs, output = (name if name == FRAME else _GLUE + name for name in names)
    return helper.make_node(operator, inputs, [output], name=f"{_GLUE}{operator}.{names[-1]}")


def _graph(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[int] | None],
    outputs: Mapping[str, Sequence[int]],
    constants: Mapping[str, Array],
) -> onnx.GraphProto:
    def declared(value: str, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)

    stored = [
        numpy_helper.from_array(value.astype(np.int64 if value.dtype.kind == "i" else np.float32), _GLUE + key)
        for key, value in constants.items()
    ]
    return helper.make_graph(
        list(nodes),
        name,
        [declared(key, shape) for key, shape in inputs.items()],
        [declared(_GLUE + key, shape) for key, shape in outputs.items()],
        stored,
    )
