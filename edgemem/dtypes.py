"""The element types that a graph may have, and what each is called elsewhere: one table for the whole package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
FloatDType = Literal["float32", "float16", "bfloat16"]
MemoryDType = Literal["float16", "int8"]
"""What rings may be stored in where the model computes in float32."""


@dataclass(frozen=True)
class ElementType:
    """One element type.

    Attributes:
        name: As contracts, numpy and torch name it.
        nbytes: Bytes of an element.
        onnx: Number in ``onnx.TensorProto.DataType``.
        ort: As ONNX Runtime names a tensor of it.
        tensorrt: Name in TensorRT's ``DataType``; empty where TensorRT has none.
    """

    name: DType
    nbytes: int
    onnx: int
    ort: str
    tensorrt: str = ""

    @property
    def is_float(self) -> bool:
        """Whether it holds real numbers."""
        return "float" in self.name

    @property
    def is_integer(self) -> bool:
        """Whether it holds integers."""
        return "int" in self.name

    @property
    def numpy(self) -> np.dtype[Any]:
        """The numpy dtype that stores it; bfloat16 is stored as its bits in uint16."""
        return np.dtype("uint16" if self.name == "bfloat16" else self.name)

    @property
    def for_ort(self) -> Any:
        """As ONNX Runtime's bindings take it: numpy has no bfloat16, so that is a number."""
        return self.onnx if self.name == "bfloat16" else np.dtype(self.name)


ELEMENT_TYPES: dict[str, ElementType] = {
    element.name: element
    for element in (
        ElementType("float32", 4, 1, "tensor(float)", "FLOAT"),
        ElementType("float16", 2, 10, "tensor(float16)", "HALF"),
        ElementType("bfloat16", 2, 16, "tensor(bfloat16)", "BF16"),
        ElementType("int64", 8, 7, "tensor(int64)", "INT64"),
        ElementType("int32", 4, 6, "tensor(int32)", "INT32"),
        ElementType("int8", 1, 3, "tensor(int8)", "INT8"),
        ElementType("uint8", 1, 2, "tensor(uint8)", "UINT8"),
        ElementType("bool", 1, 9, "tensor(bool)", "BOOL"),
    )
}
assert tuple(ELEMENT_TYPES) == get_args(DType)


def element_type(dtype: str) -> ElementType:
    """The entry of the table for a contract's dtype."""
    return ELEMENT_TYPES[dtype]


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that stores ``dtype``; bfloat16 is stored as its bits in uint16."""
    return ELEMENT_TYPES[dtype].numpy


def dtype_of_ort(name: str) -> str:
    """The contract's name of an ONNX Runtime type; the name itself where the table has none."""
    return next((element.name for element in ELEMENT_TYPES.values() if element.ort == name), name)


def dtype_of_tensorrt(name: str) -> str:
    """The contract's name of a TensorRT ``DataType``; in lower case where the table has none."""
    return next((element.name for element in ELEMENT_TYPES.values() if element.tensorrt == name), name.lower())


BFLOAT16_NAN = np.uint16(0x7FC0)
"""The bits that :func:`encode_bfloat16` gives for NaN."""


def encode_bfloat16(values: Any) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Round real numbers to bfloat16 (to nearest, ties to even) and give their bits."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), BFLOAT16_NAN, rounded.astype(np.uint16))


def decode_bfloat16(bits: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values of bfloat16 bits, as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
