"""Store the weights in one safetensors file that every graph of a bundle refers to as ONNX external data.

The file holds the module's parameters under their own names, so that the torch runtime can read it too, and the new
tensors that the exporter folded. Equal content is stored once, under whatever names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Set
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
from edgemem.weights_file import tensor_places

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
    """Write ``weights.safetensors`` and point the large initialisers of the graphs at it.

    Before: the initialisers are in memory.
    After: those of :data:`INLINE_BYTES` and more are ONNX external data, each at the place of its tensor in the file.

    Args:
        models: The graphs of the bundle; changed in place.
        module: What they were traced from: initialisers get the names of its tensors with the same content.
        folder: Where to write.
        whole: Store every tensor of the module, so that it can be rebuilt from the file; if not, only the tensors that
            graphs use.
        instead: For each parameter that the graphs hold in another form (quantised): the tensors of that form, by name.

    Raises:
        ExportError: The file cannot be written.
    """
    forms = instead or {}
    own = _own_tensors(module, forms)
    stored = {name: own[name] for tensors in forms.values() for name in tensors}
    if whole:
        stored.update(_untied(own))
    places = _name_initializers(models, own, stored)
    path = folder / WEIGHTS
    try:
        safetensors.torch.save_file(stored, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise ExportError(f"cannot write {path.name}: {error}") from error
    _point_at_file(places, path)


def _own_tensors(module: nn.Module, forms: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The module's tensors by name, in the forms in which they are stored."""
    own = {name: tensor.detach() for name, tensor in module.state_dict().items()}
    for name, tensors in forms.items():
        own.pop(name, None)
        own.update(tensors)
    return {name: tensor.cpu().contiguous() for name, tensor in own.items()}


def _untied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, where tied ones do not share memory: safetensors refuses to write the same memory twice."""
    addresses: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in addresses else tensor
        addresses.add(tensor.data_ptr())
    return found


def _name_initializers(
    models: Sequence[ir.Model], own: Mapping[str, Tensor], stored: dict[str, Tensor]
) -> list[tuple[ir.Value, str]]:
    """Give each large initialiser the name of the tensor with its content.

    Args:
        models: The graphs.
        own: Tensors that have names.
        stored: The tensors of the file; gets those of the initialisers.
    """
    by_content: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, tensor in own.items():
        by_content.setdefault(_content(tensor), name)
    places: list[tuple[ir.Value, str]] = []
    for model in models:
        for value in model.graph.initializers.values():
            constant = value.const_value
            if constant is None or constant.nbytes < INLINE_BYTES:
                continue
            tensor = _torch_tensor(constant)
            content = _content(tensor)
            if content not in by_content:
                by_content[content] = _free_name(value.name or "folded", {*own, *stored})
            stored.setdefault(by_content[content], tensor)
            places.append((value, by_content[content]))
    return places


def _point_at_file(places: Sequence[tuple[ir.Value, str]], path: Path) -> None:
    """Make initialisers external data of a safetensors file, each by the name of its tensor there."""
    offsets = tensor_places(path)
    for value, name in places:
        constant = value.const_value
        assert constant is not None
        start, end = offsets[name]
        value.const_value = ir.ExternalTensor(
            path.name,
            start,
            end - start,
            constant.dtype,
            shape=ir.Shape(constant.shape.numpy()),
            name=value.name or name,
            base_dir=path.parent,
        )


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


def _content(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """What tells tensors of different content apart: dtype, number of bytes, hash."""
    data: Any = tensor.reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, np.uint8)
    return str(tensor.dtype), (data.size,), hashlib.sha256(data).digest()


def _free_name(name: str, taken: Set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}.{number}", number + 1
    return candidate
