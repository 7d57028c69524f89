"""The tensors that a transformers model keeps between calls: found by walking, replaced in a copy.

A cache object is any nesting of lists, tuples, dictionaries and plain objects. A *leaf* is a tensor in it, known by its
path. Some models keep their state as attributes of their own modules instead: these are found in the same way.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Key = str | int
Path = tuple[Key, ...]
Scalar = int | float | str | None

_ATOMS = (int, float, str, bytes, type(None), torch.dtype, torch.device, type)
_SUFFIX = re.compile(r"_?(states?|cache)$")


def walk(root: object) -> Iterator[tuple[Path, object]]:
    """Every tensor and every plain value below ``root``, with its path; modules and configurations are not entered."""
    yield from _walk(root, (), set())


def _walk(value: object, path: Path, seen: set[int]) -> Iterator[tuple[Path, object]]:
    if isinstance(value, Tensor | int | float | str):
        yield path, value
        return
    if isinstance(value, (nn.Module, *_ATOMS)) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    for key, child in _children(value):
        yield from _walk(child, (*path, key), seen)


def _children(value: object) -> Iterator[tuple[Key, object]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)
    elif hasattr(value, "__dict__") and not hasattr(value, "model_type"):  # a configuration has one
        yield from vars(value).items()


def tensors(root: object) -> dict[Path, Tensor]:
    """Every tensor leaf, by path."""
    return {path: value for path, value in walk(root) if isinstance(value, Tensor)}


def scalars(root: object) -> dict[Path, Scalar]:
    """Every number and string, by path: they would become constants of a graph."""
    return {path: value for path, value in walk(root) if isinstance(value, int | float | str)}


def rebuild(root: Any, given: Mapping[Path, Tensor]) -> Any:
    """A copy of ``root`` with other tensors at the given paths.

    All other tensors are cloned, so that a model may write into every tensor that it gets.
    """
    memo: dict[int, Any] = {}
    for path, leaf in tensors(root).items():
        memo[id(leaf)] = given[path] if path in given else leaf.clone()
    for shared in _configurations(root, set()):
        memo[id(shared)] = shared
    return copy.deepcopy(root, memo)


def _configurations(value: object, seen: set[int]) -> Iterator[object]:
    if isinstance(value, (Tensor, nn.Module, *_ATOMS)) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    if hasattr(value, "model_type"):
        yield value
        return
    for _, child in _children(value):
        yield from _configurations(child, seen)


def module_attributes(model: nn.Module) -> dict[str, Tensor]:
    """Plain tensor attributes of the modules of ``model``, neither parameters nor buffers, by full name."""
    return {
        f"{name}.{attribute}" if name else attribute: value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, Tensor)
    }


def set_attribute(model: nn.Module, name: str, value: Tensor | None) -> None:
    """Set an attribute that :func:`module_attributes` found."""
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, value)


def state_name(path: Path) -> str:
    """``<layer>.<kind>`` of a leaf: ``layers[0].conv_states[0]`` is ``0.conv``, a second one ``0.conv.1``.

    The first number of the path is the layer, the last name the kind. A number follows if a kind has several leaves.
    """
    parts: list[Key] = []
    for key in path:
        pieces = key.split(".") if isinstance(key, str) else [str(key)]
        parts.extend(int(piece) if piece.isdigit() else piece for piece in pieces)
    numbers = [part for part in parts if isinstance(part, int)]
    words = [part for part in parts if isinstance(part, str) and part != "layers"]
    kind = _SUFFIX.sub("", words[-1]) or words[-1] if words else "state"
    layer = str(numbers[0]) if numbers else "model"
    rest = [str(number) for number in numbers[1:]]
    if rest and all(number == "0" for number in rest):
        rest = []
    return re.sub(r"[^A-Za-z0-9_.]", "_", ".".join([layer, kind, *rest]))
