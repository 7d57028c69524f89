"""Blockwise quantised matrices: how they are computed, and how a weights file stores them.

A matrix ``w`` [K, N], multiplied as ``x @ w``, is cut into blocks of ``b`` rows. Each column of a block has one scale::

    w[k, n] ≈ q[k, n] · scale[k // b, n]        q in -8 .. 7 (int4) or -127 .. 127 (int8)

That is ONNX's DequantizeLinear of opset 21, with ``axis`` 0, ``block_size`` b and no zero point. A weights file holds
``<name>.int8`` (int8 [K, N]) or ``<name>.int4`` (uint8 [K, N / 2], two to a byte, the first in the low half, as ONNX
packs them; [1, ⌈K·N / 2⌉] where N is odd), and ``<name>.scale`` [K / b, N].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from edgemem.precision import LARGEST_QUANTS, QUANT_RANGES, QuantType

_REFINEMENTS: dict[QuantType, int] = {"int4": 2, "int8": 0}
_SLICE_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class QuantizedMatrix:
    """A matrix of integers, and the scales of its blocks.

    Attributes:
        kind: ``"int8"`` or ``"int4"``.
        values: int8 ``[K, N]``.
        scale: ``[K / b, N]``, in the dtype in which the matrix is used.
    """

    kind: QuantType
    values: Tensor
    scale: Tensor

    @property
    def block_size(self) -> int:
        """Rows in a block."""
        return int(self.values.shape[0] // self.scale.shape[0])

    def dequantize(self) -> Tensor:
        """``[K, N]``, in the dtype of the scales."""
        blocks = self.values.reshape(*self.scale.shape[:1], -1, self.scale.shape[1])
        return (blocks.to(self.scale.dtype) * self.scale[:, None]).reshape(self.values.shape)

    def stored(self) -> dict[str, Tensor]:
        """The tensors that a weights file stores, by the suffix of their names."""
        return {self.kind: pack_int4(self.values) if self.kind == "int4" else self.values, "scale": self.scale}


def quantize_matrix(weight: Tensor, kind: QuantType, block_size: int, scale_dtype: torch.dtype) -> QuantizedMatrix:
    """The nearest blockwise matrix to ``weight``, by the sum of squared differences.

    int4: the best of several scales for each block. Each scale is refined together with the rounding: the best scale
    for a given rounding is ``Σ w q / Σ q²``. Scales are positive, because TensorRT requires it. int8: the largest
    weight of a block becomes ±127; a search would gain almost nothing.

    Args:
        weight: Floating point ``[K, N]``, K a multiple of ``block_size``.
        kind: ``"int8"`` or ``"int4"``.
        block_size: Rows in a block.
        scale_dtype: The scales are rounded to it before the weights are quantised.
    """
    rows, columns = weight.shape
    values = torch.empty(rows, columns, dtype=torch.int8)
    scale = torch.empty(rows // block_size, columns, dtype=scale_dtype)
    with torch.no_grad():
        step = max(1, _SLICE_ELEMENTS // rows)  # slice by slice: whole copies of a large matrix would fill the memory
        for start in range(0, columns, step):
            part = weight[:, start : start + step].detach().cpu().float().reshape(rows // block_size, block_size, -1)
            best, best_scale = _quantize_blocks(part, kind, scale_dtype)
            values[:, start : start + step] = best.reshape(rows, -1).to(torch.int8)
            scale[:, start : start + step] = best_scale[:, 0]
    return QuantizedMatrix(kind, values, scale)


def _quantize_blocks(blocks: Tensor, kind: QuantType, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers ``[K/b, b, N]`` and scales ``[K/b, 1, N]`` for ``blocks`` [K/b, b, N]."""
    least, most = QUANT_RANGES[kind]
    largest = blocks.abs().amax(dim=1, keepdim=True)
    smallest = torch.finfo(scale_dtype).tiny  # a block of zeros must not divide by zero

    def rounded(scale: Tensor) -> tuple[Tensor, Tensor]:
        scale = scale.clamp(min=smallest).to(scale_dtype)
        return (blocks / scale.float()).round_().clamp_(least, most), scale

    found: tuple[Tensor, Tensor] | None = None
    error = torch.empty(0)
    for target in LARGEST_QUANTS[kind]:
        q, scale = rounded(largest / target)
        for _ in range(_REFINEMENTS[kind]):
            q, scale = rounded((blocks * q).sum(1, keepdim=True) / (q * q).sum(1, keepdim=True).clamp(min=1))
        new_error = (q * scale.float() - blocks).square_().sum(1, keepdim=True)
        if found is None:
            found, error = (q, scale), new_error
        else:
            better = new_error < error
            found = torch.where(better, q, found[0]), torch.where(better, scale, found[1])
            error = torch.where(better, new_error, error)
    assert found is not None
    return found


def pack_int4(values: Tensor) -> Tensor:
    """int8 ``[K, N]`` in -8 .. 7 as uint8 ``[K, N / 2]``, or ``[1, ⌈K·N / 2⌉]`` where N is odd."""
    flat = values.reshape(-1)
    if flat.numel() % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    nibbles = flat.view(torch.uint8) & 0xF
    packed = nibbles[0::2] | (nibbles[1::2] << 4)
    return packed.reshape(1, -1) if values.shape[1] % 2 else packed.reshape(values.shape[0], -1)


def unpack_int4(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of :func:`pack_int4`: int8 ``shape``."""
    flat = packed.reshape(-1)
    nibbles = torch.stack([flat & 0xF, flat >> 4], dim=-1).reshape(-1)[: shape[0] * shape[1]]
    return ((nibbles ^ 8).to(torch.int8) - 8).reshape(shape)


def read_matrix(name: str, shape: tuple[int, int], read: Callable[[str], Tensor | None]) -> QuantizedMatrix | None:
    """A quantised matrix from a weights file.

    Args:
        name: The matrix's name.
        shape: ``(K, N)``.
        read: Returns the file's tensor of that name, or ``None``.

    Returns:
        The matrix, or ``None`` if the file has no matrix of that name and shape.
    """
    scale = read(f"{name}.scale")
    packed, values = read(f"{name}.int4"), read(f"{name}.int8")
    if packed is not None and packed.numel() == -(-shape[0] * shape[1] // 2):
        values = unpack_int4(packed, shape)
    if scale is None or values is None or tuple(values.shape) != shape or scale.dim() != 2:
        return None
    if scale.shape[1] != shape[1] or not scale.shape[0] or shape[0] % scale.shape[0]:
        return None
    return QuantizedMatrix("int8" if packed is None else "int4", values, scale)
