"""What the shared tests need to know about a kind of memory: ``tests/memories/kinds`` has one file for each.

Like the oracle, it shares no code with edgemem.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[np.float64]
Draw = Callable[..., Array]
Options = st.SearchStrategy[dict[str, Any]]

BIAS: dict[str, st.SearchStrategy[Any]] = {"bias": st.sampled_from(["none", "learned"])}
BIAS_COUNTED: dict[str, st.SearchStrategy[Any]] = {"bias": st.sampled_from(["none", "learned", "log_count"])}
WINDOWS = st.integers(1, 9)
NAN = float("nan")


@dataclass(frozen=True)
class Kind:
    """A kind of memory, for the shared tests.

    Attributes:
        options: From the number of key/value heads to any valid options.
        slots: The oracle of a memory with slots: ``(layer, name, spec, i, h, g)`` to ``[(score, value), ...]``, what
            query ``i`` of head ``h`` and group ``g`` sees.
        matrix: The oracle of a matrix memory instead: ``(layer, name, i, h, g)`` to its read ``[D]``.
        usual: Options where a test gives no others: those without a default.
        far: Options to add where streams start far away.
        fixed: Whether its size is fixed.
        given: ``(draw, heads, size)`` to what stands for a past that is too long to list.
        fill: ``(states, name, spec, sizes, history)`` writes a past into the states.
        beside: The kind that must be in the same list.
        bad: Options that are refused, and the name in the message.
    """

    options: Callable[[int], Options]
    slots: Callable[..., list[tuple[float, Array]]] | None = None
    matrix: Callable[..., Array] | None = None
    usual: Mapping[str, Any] = field(default_factory=dict)
    far: Mapping[str, Any] = field(default_factory=dict)
    fixed: bool = True
    given: Callable[[Draw, int, int], dict[str, Array]] | None = None
    fill: Callable[..., None] | None = None
    beside: str | None = None
    bad: Sequence[tuple[dict[str, Any], str]] = ()


def kind_of(type_name: str) -> Kind:
    """The kind of this name, from its file in ``tests/memories/kinds``."""
    kind: Kind = importlib.import_module(f"tests.memories.kinds.test_{type_name}").KIND
    return kind


def bad(option: str, *values: Any, **others: Any) -> list[tuple[dict[str, Any], str]]:
    """Wrong values of an option, beside right ones of others."""
    return [({option: value, **others}, option) for value in values]


def side_by_side(pair: tuple[Array, Array]) -> Array:
    """Keys of all heads, then their values: ``[2H, D]``."""
    return np.concatenate(pair, axis=0)


def fill_ring_of_pairs(states: dict[str, Any], name: str, spec: Any, sizes: Any, history: Any) -> None:
    """The newest pairs, by position modulo the ring's length."""
    for j in range(max(0, history.start - spec["window"]), history.start):
        states[f"{name}.pairs"][0, :, j % spec["window"]] = side_by_side(history.pairs[j])


def fill_summary(states: dict[str, Any], name: str, spec: Any, sizes: Any, history: Any) -> None:
    """What stands for the past, keys and values on one axis of heads."""
    for tensor, value in history.given.get(name, {}).items():
        keys, values = np.split(value, 2, axis=-1) if tensor != "mass" else (value, value[:0])
        states[f"{name}.{tensor}"][0, :, 0] = side_by_side((keys, values))


def fill_matrix(states: dict[str, Any], name: str, spec: Any, sizes: Any, history: Any) -> None:
    """What stands for the past, as it is."""
    for tensor, value in history.given.get(name, {}).items():
        states[f"{name}.{tensor}"][0] = value


def sum_and_mass(draw: Draw, heads: int, size: int) -> dict[str, Array]:
    """A decayed sum of pairs and its mass."""
    return {"sum": draw(heads, 2 * size), "mass": np.abs(draw(heads, 1)) + 1}
