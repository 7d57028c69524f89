"""A torch module in float64, whatever its code says: what rounding does to it, and what it counts in float32.

``module.double()`` leaves every ``.float()`` and ``dtype=torch.float32`` in the code as it is, and needs a second copy
of the weights. Here each operator gets its float32 tensors widened, and no operator makes a float32 tensor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_MOVING = frozenset({"aten::embedding", "aten::index_select", "aten::index.Tensor", "aten::gather"})
"""Operators that only move values: a widened copy of a whole table would be wasted."""


T = TypeVar("T")


def in_float64(module: nn.Module, run: Callable[[], T]) -> T | None:
    """What ``run`` gives while the module computes in float64; ``None`` where the module cannot."""
    try:
        with widened(module):
            return run()
    except Exception:  # the module's own code may insist on a dtype
        return None


@contextlib.contextmanager
def widened(module: nn.Module) -> Iterator[None]:
    """Within the context, the module computes in float64. Its parameters stay as they are."""
    replaced = [*_replaced(module)]
    default = torch.get_default_dtype()
    hook = module.register_forward_pre_hook(_widen_arguments, with_kwargs=True, prepend=True)
    try:
        for owner, name, value in replaced:
            owner[name] = _widen(value)
        torch.set_default_dtype(torch.float64)
        with torch.no_grad(), _Widening():  # type: ignore[no-untyped-call]
            yield
    finally:
        torch.set_default_dtype(default)
        for owner, name, value in replaced:
            owner[name] = value
        hook.remove()


class _Widening(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = _without_float32(args), _without_float32(kwargs or {})
        if func.is_view:  # a widened copy would not be one
            return func(*args, **kwargs)
        if func.name() in _MOVING:
            return _widen(func(*args, **kwargs))
        if func._schema.is_mutable:
            return func(args[0], *_widen(args[1:]), **_widen(kwargs))
        return _widen(func(*_widen(args), **_widen(kwargs)))


def _without_float32(tree: Any) -> Any:
    """The arguments with float64 where an operator is asked to make float32."""
    return pytree.tree_map_only(torch.dtype, lambda dtype: torch.float64 if dtype == torch.float32 else dtype, tree)


def _widen(tree: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.double() if x.dtype == torch.float32 else x, tree)


def _widen_arguments(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return _widen(args), _widen(kwargs)


def _replaced(module: nn.Module) -> Iterator[tuple[Any, str, Any]]:
    """What torch compares with the data's dtype: buffers, and the weights of recurrent layers and convolutions."""
    for submodule in module.modules():
        yield from ((submodule._buffers, name, value) for name, value in submodule._buffers.items())
        if isinstance(submodule, nn.RNNBase | nn.RNNCellBase | _ConvNd):
            yield from ((submodule._parameters, name, value) for name, value in submodule._parameters.items())
        if isinstance(submodule, nn.RNNBase):
            yield vars(submodule), "_flat_weights", submodule._flat_weights
