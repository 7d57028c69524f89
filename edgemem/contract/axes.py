"""The axes of a graph's tensors: numbers, and sizes that the caller of the graph chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgemem.errors import ContractError

Kind = Literal["batch", "time", "selected", "length", "new_length"]
_WORDS = {"new_length": "length + time"}


@dataclass(frozen=True)
class Sizes:
    """The sizes that one call chooses.

    Attributes:
        batch: Streams, ``B``.
        time: Steps, ``T``.
        selected: Steps whose outputs are computed, ``S``.
        length: Entries of a growing state before the call.
    """

    batch: int = 1
    time: int = 1
    selected: int = 1
    length: int = 0


@dataclass(frozen=True)
class Axis:
    """An axis whose size a call chooses.

    Attributes:
        kind: What decides its size. ``"new_length"`` is the length of a growing state after the call.
        times: Entries for each step, on a time axis.
        plus: Entries on top of these: the context that a framed input repeats.
        only: The one size that this graph takes, where the graph takes calls of one length alone.
    """

    kind: Kind
    times: int = 1
    plus: int = 0
    only: int | None = None

    def size(self, sizes: Sizes) -> int:
        """Its size in one call."""
        if self.kind == "batch" and self.only is not None:
            return self.only
        if self.kind == "new_length":
            return sizes.length + sizes.time
        count: int = getattr(sizes, self.kind)
        return count * self.times + self.plus

    def __str__(self) -> str:
        text = _WORDS.get(self.kind, self.kind)
        text = text if self.times == 1 else f"{self.times} * {text}"
        return f"{text} + {self.plus}" if self.plus else text


def in_graph(value: np.ndarray[Any, Any], batch_axis: int | None) -> np.ndarray[Any, Any]:
    """A value ``[1, ...]`` of one stream, with its batch axis where the graph has it, if it has one."""
    return np.ascontiguousarray(value[0] if batch_axis is None else np.moveaxis(value, 0, batch_axis))


def insert_axes(shape: Sequence[int], axes: dict[str, int | None]) -> list[int | str]:
    """``shape`` with the named axes put at their places in the finished tensor; ``None`` leaves one out."""
    found: list[int | str] = list(shape)
    for name, place in sorted(((n, p) for n, p in axes.items() if p is not None), key=lambda item: item[1]):
        if not 0 <= place <= len(found):
            raise ContractError(f"the {name} axis {place} lies outside a tensor of {len(found) + 1} axes.")
        found.insert(place, name)
    return found


def remove_axes(owner: str, axes: Sequence[object], names: Sequence[str]) -> tuple[tuple[int, ...], list[int | None]]:
    """What :func:`insert_axes` was given: the shape, and the place of each name.

    Raises:
        ContractError: An axis is neither a size nor one of the names, or a name stands twice.
    """
    for axis in axes:
        if axis not in names and (not isinstance(axis, int) or isinstance(axis, bool)):
            raise ContractError(f"{owner}: the axis {axis!r} is neither a number nor one of {', '.join(names)}.")
    if twice := [name for name in names if list(axes).count(name) > 1]:
        raise ContractError(f"{owner}: the axis {twice[0]!r} stands twice in {list(axes)}.")
    shape = tuple(axis for axis in axes if isinstance(axis, int))
    return shape, [list(axes).index(name) if name in axes else None for name in names]
