"""The tensors of a nested state: their places, names and batch axes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from edgemem.errors import ProtocolError

MAX_CHUNK = 256
"""Default for the most steps of one call."""
_BATCHES = (2, 3)  # streams of the two states that are compared


@dataclass(frozen=True)
class Leaf:
    """One tensor of a nested state.

    Attributes:
        path: Its place in the nesting, as Python writes it: ``.cell[0]["h"]``.
        name: Its name in the contract.
        shape: Its shape in the module, without the batch axis.
        dtype: Its dtype.
        batch_axis: The axis of the batch: 1 in ``[layers, B, width]`` of ``nn.LSTM``.
        fill: Initial value of every element; ``None`` where they differ.
        initial: The initial value ``[*shape]``.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_axis: int
    fill: float | None
    initial: Tensor


def read_start(state: Callable[[int], Any], names: Sequence[str] | None) -> tuple[tuple[Leaf, ...], pytree.TreeSpec]:
    """The tensors of an initial state, and how they are nested.

    Raises:
        ProtocolError: See :class:`~edgemem.streaming.Streaming`.
    """
    try:
        with torch.no_grad():
            (few, treespec), (more, _) = (flatten(state(batch)) for batch in _BATCHES)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(
            f"the initial state of {_BATCHES[0]} streams raised {type(error).__name__}: {error}",
            hint="state= is a function of the number of streams: lambda batch: torch.zeros(2, batch, 64)",
        ) from error
    if not few:
        raise ProtocolError("the initial state holds no tensor.")
    if [path for path, _ in few] != [path for path, _ in more]:
        raise ProtocolError("the initial state is nested differently for two streams and for three.")
    if names is None:
        names = [default_name(path, len(few)) for path, _ in few]
    elif len(names) != len(few):
        raise ProtocolError(f"{len(names)} names for {len(few)} states: {listed(path for path, _ in few)}.")
    leaves = tuple(
        _leaf(path, name, one, other) for name, (path, one), (_, other) in zip(names, few, more, strict=True)
    )
    return leaves, treespec


def _leaf(path: str, name: str, two: Any, three: Any) -> Leaf:
    what = f"the initial state {name!r}"
    if not isinstance(two, Tensor) or not isinstance(three, Tensor):
        raise ProtocolError(
            f"{what} is {described(two)}, wanted a tensor.",
            hint="A trace turns a Python value into a constant: keep it as a tensor with a batch axis.",
        )
    axis = batch_axis(what, two, three)
    rows = two.detach().movedim(axis, 0)
    if not torch.equal(rows[0], rows[1]) and not _both_nan(rows):
        raise ProtocolError(
            f"{what} differs from stream to stream.", hint="Every stream must start with the same values."
        )
    first = rows[0].clone()
    fill = float(first.flatten()[0]) if first.numel() and bool((first == first.flatten()[0]).all()) else None
    return Leaf(path, name, tuple(first.shape), first.dtype, axis, fill, first)


def batch_axis(what: str, two: Tensor, three: Tensor) -> int:
    """The axis that has size 2 with two streams and 3 with three.

    Raises:
        ProtocolError: There is none, or the batch is folded into another axis.
    """
    sizes = f"{list(two.shape)} for two streams, {list(three.shape)} for three"
    differing = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=False)) if a != b]
    if two.ndim != three.ndim or len(differing) > 1:
        raise ProtocolError(f"{what} has more than one axis that depends on the batch: {sizes}.")
    if not differing:
        raise ProtocolError(
            f"{what} has no batch axis: {sizes}.",
            hint="Every stream needs its own value, and torch's recurrent layers need batch_first=True.",
        )
    (axis,) = differing
    if (two.shape[axis], three.shape[axis]) != _BATCHES:
        raise ProtocolError(
            f"{what} has its batch folded into another axis: {sizes}.", hint="Keep the batch on a separate axis."
        )
    return axis


def flatten(tree: Any) -> tuple[list[tuple[str, Any]], pytree.TreeSpec]:
    """The leaves of a nested state with their paths, and how they are nested. Dataclasses are nested states too."""
    leaves, treespec = pytree.tree_flatten_with_path(tree)
    unknown = {type(leaf) for _, leaf in leaves if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)}
    if unknown:
        for kind in unknown:
            pytree.register_dataclass(kind)
        return flatten(tree)
    return [(pytree.keystr(path), leaf) for path, leaf in leaves], treespec


def default_name(path: str, count: int) -> str:
    """A name for the contract from a path: ``.cell[0]['h']`` is ``cell.0.h``; paths of numbers alone get ``state``."""
    parts = [part for part in re.split(r"[^A-Za-z0-9_]+", path) if part]
    return ".".join(["state", *parts] if all(part.isdigit() for part in parts) else parts)


def _both_nan(rows: Tensor) -> bool:
    return rows.is_floating_point() and torch.allclose(rows[0], rows[1], equal_nan=True)


def described(value: Any) -> str:
    """The type of a value that is not a tensor, with its article."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def listed(paths: Iterable[str]) -> str:
    """Paths as a list for a message."""
    return ", ".join(path or "(one tensor)" for path in paths) or "none"
