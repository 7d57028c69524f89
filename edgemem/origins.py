"""Which submodule made a tensor, and where it is kept: so that an error can name the place.

A call is followed by a dispatch mode, which sees every operator, and by hooks, which say whose ``forward`` is running.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

_DEPTH = 3  # a cache object within a list within an attribute
_OF_TORCH = frozenset(vars(nn.Module()))
_LIBRARIES = frozenset(("builtins", "edgemem", "torch", "transformers"))
"""Whose classes share nothing that a model's outputs depend on."""
_PLAIN = (bool, int, float, list, dict, Tensor)


class Origins(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the calls made inside ``with Origins(module):``.

    Args:
        module: The module whose submodules are told apart.
        find_nan: Look for NaN in what every operator gives, too.
    """

    def __init__(self, module: nn.Module, *, find_nan: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.module = module
        self.first_nan: str | None = None
        self._find_nan = find_nan
        self._paths = {submodule: path for path, submodule in module.named_modules()}
        self._made = WeakTensorKeyDictionary()
        self._running: list[str] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Origins:
        for submodule in self._paths:
            self._hooks.append(submodule.register_forward_pre_hook(self._begin, prepend=True))
            self._hooks.append(submodule.register_forward_hook(self._end))
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    @property
    def running(self) -> str | None:
        """Path of the submodule whose ``forward`` is running, or was when it raised; ``""`` is the module itself."""
        return self._running[-1] if self._running else None

    def of(self, tensor: Tensor) -> str | None:
        """Path of the submodule that made ``tensor``; ``None`` where it was made before or outside."""
        path: str | None = self._made.get(tensor)  # type: ignore[no-untyped-call]
        return path

    def place(self, path: str | None) -> str | None:
        """A path in words: ``encoder.gru (GRU)``."""
        return None if path is None else in_words(self.module, path)

    def _begin(self, submodule: nn.Module, _: Any) -> None:
        self._running.append(self._paths[submodule])

    def _end(self, submodule: nn.Module, _: Any, result: Any) -> None:
        self._running.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self._running:
            for tensor in tensors_in(result):
                self._made[tensor] = self._running[-1]
                if self._find_nan and self.first_nan is None and has_nan(tensor):
                    self.first_nan = self._running[-1]
        return result


def first_to_differ(
    module: nn.Module, whole: Callable[[], Any], stepwise: Callable[[], Any], close: Callable[[Tensor, Tensor], bool]
) -> str | None:
    """Path of the first submodule whose output in one call is not what it gives step by step.

    Args:
        module: The module; the submodules below it are compared.
        whole: Calls it once, for several time steps.
        stepwise: Calls it once for each of them.
        close: Whether two tensors are alike.
    """
    calls: list[list[tuple[str, Tensor]]] = []
    for run in (whole, stepwise):
        seen: list[tuple[str, Tensor]] = []
        hooks = [
            submodule.register_forward_hook(lambda _, __, result, path=path, seen=seen: _note(seen, path, result))
            for path, submodule in module.named_modules()
            if path
        ]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        calls.append(seen)
    once, each = calls
    if not once or len(each) % len(once):
        return None
    for index, (path, together) in enumerate(once):
        steps = [tensor for _, tensor in each[index :: len(once)]]
        time = [axis for axis, size in enumerate(together.shape) if size != steps[0].shape[axis]]
        if len(time) == 1 and not close(together, torch.cat(steps, dim=time[0])):
            return path
    return None


def _note(seen: list[tuple[str, Tensor]], path: str, result: Any) -> None:
    seen.extend((path, tensor) for tensor in tensors_in(result)[:1])


def in_words(module: nn.Module, path: str) -> str:
    """The submodule at ``path`` in words: ``encoder.gru (GRU)``, or ``Model itself`` for ``""``."""
    kind = type(module.get_submodule(path)).__name__
    return f"{path} ({kind})" if path else f"{kind} itself"


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of nested containers."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def has_nan(tensor: Tensor) -> bool:
    """Whether a tensor of real numbers holds NaN."""
    return tensor.is_floating_point() and bool(torch.isnan(tensor).any())


def kept(module: nn.Module) -> dict[str, Any]:
    """What the module keeps between calls besides its parameters, by path: buffers, and its attributes' contents.

    Tensors are copied; numbers, text and flags are taken as they are; a cache object is looked into. So are attributes
    of the user's own classes, and the variables outside of them that their methods use.
    """
    values: dict[str, Any] = {}
    for path, submodule in module.named_modules():
        prefix = f"{path}." if path else ""
        for name, buffer in submodule.named_buffers(recurse=False):
            values[prefix + name] = buffer.detach().clone()
        for name, value in vars(submodule).items():
            if name not in _OF_TORCH:
                for where, leaf in _contents(value, _DEPTH):
                    values[prefix + name + where] = leaf
    for kind in {kind for submodule in module.modules() for kind in type(submodule).__mro__}:
        if kind.__module__.partition(".")[0] not in _LIBRARIES:
            for name, value in filter(lambda found: isinstance(found[1], _PLAIN), _shared(kind)):
                for where, leaf in _contents(value, _DEPTH):
                    values[name + where] = leaf
    return values


def _shared(kind: type) -> Iterator[tuple[str, Any]]:
    """What all instances of a class share and may change, by name: its attributes, and variables of its methods."""
    for name, value in vars(kind).items():
        if inspect.isfunction(value):
            try:
                outside = inspect.getclosurevars(value)
            except ValueError:  # a variable that has no value yet
                continue
            for place, variables in (("nonlocal", outside.nonlocals), ("global", outside.globals)):
                yield from ((f"{place} {variable}", found) for variable, found in variables.items())
        elif not name.startswith("__"):
            yield f"{kind.__name__}.{name}", value


def _contents(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, nn.Parameter):
        return
    if isinstance(value, Tensor):
        yield "", value.detach().clone()
    elif isinstance(value, bool | int | float | str) or value is None:
        yield "", value
    elif depth > 0 and isinstance(value, Mapping):
        for key, item in value.items():
            for where, leaf in _contents(item, depth - 1):
                yield f"[{key!r}]{where}", leaf
    elif depth > 0 and isinstance(value, list | tuple):
        for index, item in enumerate(value):
            for where, leaf in _contents(item, depth - 1):
                yield f"[{index}]{where}", leaf
    elif depth > 0 and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type) and not callable(value):
        for name, item in vars(value).items():
            for where, leaf in _contents(item, depth - 1):
                yield f".{name}{where}", leaf


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Paths of what :func:`kept` gives differently now, tensors first."""
    differing = [path for path in after if path not in before or not _alike(before[path], after[path])]
    return sorted(differing, key=lambda path: not isinstance(after[path], Tensor))


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if isinstance(one, FakeTensor) or isinstance(other, FakeTensor):  # left by a trace: it has no values
            return True
        return torch.allclose(one, other, equal_nan=True) if one.is_floating_point() else torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)
