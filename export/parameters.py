"""Finds the parameter of a module behind an initialiser of its graph, and replaces the values of parameters."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

FLOATS = {ir.DataType.FLOAT: torch.float32, ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}


class ParameterNames:
    """Finds a parameter by its memory, or by its content if the exporter folded its transpose into a new tensor.

    Args:
        module: The module that the graphs were traced from.
    """

    def __init__(self, module: nn.Module) -> None:
        self.parameters = dict(module.named_parameters())
        self._by_address = {parameter.data_ptr(): name for name, parameter in self.parameters.items()}
        self._by_content: dict[tuple[tuple[int, ...], bytes], tuple[str, bool]] | None = None

    def find(self, value: ir.Value, tensor: Tensor) -> tuple[str, bool]:
        """The name of an initialiser's parameter and whether it is the transpose; without a parameter, its own name."""
        raw = getattr(value.const_value, "raw", None)
        if isinstance(raw, Tensor) and (name := self._by_address.get(raw.data_ptr())):
            return name, False
        if self._by_content is None:
            self._by_content = {}
            for name, parameter in self.parameters.items():
                self._by_content.setdefault(_content(parameter), (name, False))
            for name, parameter in self.parameters.items():
                if parameter.dim() == 2:
                    self._by_content.setdefault(_content(parameter.t()), (name, True))
        return self._by_content.get(_content(tensor), (value.name or "folded", False))


def float_tensor(value: ir.Value) -> Tensor | None:
    """A floating-point initialiser as a tensor, which shares its memory if possible; ``None`` for anything else."""
    constant = value.const_value
    if constant is None or constant.dtype not in FLOATS:
        return None
    raw = getattr(constant, "raw", None)
    if isinstance(raw, Tensor):
        return raw.detach().cpu()
    flat = torch.frombuffer(bytearray(constant.tobytes()), dtype=FLOATS[constant.dtype])
    return flat.reshape(tuple(constant.shape.numpy()))


def _content(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    data = tensor.detach().cpu().contiguous()
    bits: Any = data.reshape(-1).view(torch.uint8).numpy() if data.numel() else b""
    return tuple(data.shape), hashlib.sha256(bits).digest()


@contextlib.contextmanager
def substituted(module: nn.Module, multiplied: Mapping[str, Tensor], looked_up: Mapping[str, Tensor]) -> Iterator[None]:
    """Compute with other values of some parameters, within the context.

    If a parameter is tied, each place gets the value for its own use.

    Args:
        module: The module.
        multiplied: Parameter → its value in products.
        looked_up: Parameter → its value in an ``nn.Embedding``.
    """
    addresses = {parameter.data_ptr(): name for name, parameter in module.named_parameters()}
    before: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for place, parameter in list(module.named_parameters(remove_duplicate=False)):
            name = addresses[parameter.data_ptr()]
            owner_name, _, attribute = place.rpartition(".")
            owner = module.get_submodule(owner_name)
            new = (looked_up if isinstance(owner, nn.Embedding) else multiplied).get(name)
            if new is not None:
                before.append((owner, attribute, parameter))
                setattr(owner, attribute, nn.Parameter(new.to(parameter.dtype), requires_grad=False))
        yield
    finally:
        for owner, attribute, parameter in before:
            setattr(owner, attribute, parameter)
