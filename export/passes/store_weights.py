"""Weights: one safetensors file that every graph of a bundle refers to as ONNX external data.

The file holds the module's parameters under their own names, so that the torch runtime can read it too; what the
exporter folded into new tensors joins them. Equal content is stored once, whatever it is called.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from edgemem.bundle import WEIGHTS
from edgemem.errors import ExportError

INLINE_BYTES = 1024
"""Initialisers smaller than this stay in the graph, where shape inference can see them."""


def store_weights(
    models: Sequence[ir.Model],
    module: nn.Module,
    folder: Path,
    *,
    whole: bool = True,
    instead: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Write ``weights.safetensors`` and point the large initialisers of ``models`` at it.

    Args:
        models: The graphs of the bundle.
        module: What they were traced from; its tensors give the initialisers of equal content their names.
        folder: Where to write.
        whole: Store every tensor of the module, so that it can be rebuilt from the file, not only what graphs use.
        instead: Parameter → the tensors, by name, that stand for it, where the graphs hold other ones (quantised).

    Raises:
        ExportError: The file cannot be written.
    """
    own = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for name, standing in (instead or {}).items():
        own.pop(name, None)
        own.update(standing)
    own = {name: tensor.cpu().contiguous() for name, tensor in own.items()}
    by_content: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, tensor in own.items():
        by_content.setdefault(_content(_bits(tensor), str(tensor.dtype)), name)
    tensors = {name: own[name] for standing in (instead or {}).values() for name in standing}
    if whole:
        addresses: set[int] = set()
        for name, tensor in own.items():
            # Tied tensors share memory, which safetensors refuses to write twice.
            tensors[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
            addresses.add(tensor.data_ptr())
    places: list[tuple[ir.Value, str]] = []
    for model in models:
        for value in model.graph.initializers.values():
            constant = value.const_value
            if constant is None or constant.nbytes < INLINE_BYTES:
                continue
            tensor = _torch_tensor(constant)
            content = _content(_bits(tensor), str(tensor.dtype))
            if content not in by_content:
                by_content[content] = _free_name(value.name or "folded", {**own, **tensors})
            tensors.setdefault(by_content[content], tensor)
            places.append((value, by_content[content]))
    path = folder / WEIGHTS
    try:
        safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise ExportError(f"cannot write {path.name}: {error}") from error
    offsets = _offsets(path)
    for value, name in places:
        constant = value.const_value
        assert constant is not None
        start, end = offsets[name]
        value.const_value = ir.ExternalTensor(
            WEIGHTS,
            start,
            end - start,
            constant.dtype,
            shape=ir.Shape(constant.shape.numpy()),
            name=value.name or name,
            base_dir=folder,
        )


def _offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor's bytes lie in a safetensors file: an 8-byte length, a JSON header, then the data."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    base = 8 + length
    return {
        name: (base + entry["data_offsets"][0], base + entry["data_offsets"][1])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _torch_tensor(constant: ir.TensorProtocol) -> Tensor:
    raw = getattr(constant, "raw", None)
    if isinstance(raw, Tensor):
        return raw.detach().cpu().contiguous()
    if constant.dtype == ir.DataType.INT4:  # two to a byte, for which torch has no type
        return torch.frombuffer(bytearray(constant.tobytes()), dtype=torch.uint8).reshape(1, -1)
    if constant.dtype == ir.DataType.BFLOAT16:  # which numpy lacks
        flat = torch.frombuffer(bytearray(constant.tobytes()), dtype=torch.bfloat16)
        return flat.reshape(tuple(constant.shape.numpy()))
    return torch.from_numpy(np.ascontiguousarray(constant.numpy()))


def _bits(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)


def _content(data: Any, dtype: str) -> tuple[str, tuple[int, ...], bytes]:
    return dtype, (data.size,), hashlib.sha256(data).digest()


def _free_name(name: str, taken: dict[str, Tensor]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}.{number}", number + 1
    return candidate
