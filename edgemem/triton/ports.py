"""The tensors of a whole graph, as a server declares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.dtypes import element_type

_NAMES = {"float32": "FP32", "float16": "FP16", "bfloat16": "BF16"}


@dataclass(frozen=True)
class Port:
    """One input or output of a whole graph; its first axis is the batch.

    Attributes:
        name: Its name in the graph.
        dtype: Element type.
        dims: Its axes after the batch, at least one; -1: any size.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]

    @property
    def triton_dtype(self) -> str:
        """As Triton's configurations name the element type: ``"TYPE_FP32"``."""
        return f"TYPE_{_NAMES.get(self.dtype, self.dtype.upper())}"

    @property
    def onnx_dtype(self) -> int:
        """Number in ``onnx.TensorProto.DataType``."""
        return element_type(self.dtype).onnx


@dataclass(frozen=True)
class StatePort:
    """A state of a whole graph: an input, and the output that is its next value.

    Attributes:
        past: The input.
        present: The output, of the same dtype and axes.
        initial: Its first value without the batch axis; bfloat16 as its bits in uint16.
    """

    past: Port
    present: Port
    initial: NDArray[Any]

    @property
    def starts_at_zero(self) -> bool:
        """Whether every element of the first value is 0."""
        return not np.any(self.initial)


@dataclass(frozen=True)
class Ports:
    """Everything that goes into a whole graph and comes out of it.

    Attributes:
        inputs: What a request brings: data first, then held inputs.
        outputs: What it gets.
        states: What is carried from one request to the next.
        max_batch: Most streams in one call; 1 where the graph computes one stream.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    states: tuple[StatePort, ...]
    max_batch: int
