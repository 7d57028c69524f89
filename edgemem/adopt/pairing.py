"""Which output holds the new value of which state input: one-to-one, by dtype, shape and name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgemem.adopt.options import BY_METADATA, BY_USER
from edgemem.errors import ExportError

_AFFIXES = {
    *("new", "next", "present", "past", "prev", "previous", "old", "cur", "current", "cache", "cached", "state"),
    *("states", "in", "out", "input", "output", "ret", "updated", "n", "t"),
}
_PLAIN = {"cache", "cached", "state", "states"}  # of names that say no more than that
NOT_PROVED = "not proved"
_NEVER = -1e6
_SAME = 0.02  # a smaller advantage of a name decides nothing
_ALIKE = 0.8


Value = tuple[str, tuple[int, ...]]
"""Dtype and shape of a tensor in a call."""


@dataclass(frozen=True)
class Pair:
    """A state: what a step takes, and what it gives for the next.

    Attributes:
        input: Name of the graph's input.
        output: Name of the graph's output.
        by: What decided it, in words.
        twins: Inputs of the other states of its dtype and shape: the graph would run with their values exchanged.
        is_proved: Whether there is no other pairing, or something other than a name or the user told them apart.
    """

    input: str
    output: str
    by: str
    twins: tuple[str, ...] = ()
    is_proved: bool = False

    def renamed(self, prefix: str) -> Pair:
        """The same pair in a graph in which the names begin with ``prefix``."""
        twins = tuple(prefix + name for name in self.twins)
        return replace(self, input=prefix + self.input, output=prefix + self.output, twins=twins)

    @property
    def verdict(self) -> str:
        """The output, what decided it, and whether anything proves it."""
        words = f"→ {self.output}: {self.by}"
        return words if self.is_proved or not self.twins else f"{words}, {NOT_PROVED}"


def pair_states(
    inputs: Mapping[str, Value], outputs: Mapping[str, Value], given: Mapping[str, str], given_by: str = BY_USER
) -> tuple[list[Pair], dict[str, str]]:
    """Pair every state input with an output.

    Args:
        inputs: The state inputs.
        outputs: What may be a state's new value.
        given: Pairs that were named, input → output.
        given_by: Who named them, in words.

    Returns:
        The pairs; and inputs whose names do not decide, each with an output that would do as well.

    Raises:
        ExportError: An input fits no output that is left.
    """
    names = [name for name in inputs if name not in given]
    free = {name: value for name, value in outputs.items() if name not in given.values()}
    fits = {name: [out for out in free if free[out] == inputs[name]] for name in names}
    scores = [[similarity(name, out) if out in fits[name] else _NEVER for out in free] for name in names]
    for name in names:
        if not fits[name]:
            raise _fits_nothing(name, inputs[name], free)
    chosen = assign(scores) if len(names) <= len(free) else []
    if (not chosen and names) or any(scores[row][column] == _NEVER for row, column in enumerate(chosen)):
        raise ExportError(
            f"the states {', '.join(names)} do not pair one to one with the outputs {', '.join(free)}.",
            hint="Say what the inputs are: --input, --held, --fixed NAME=VALUE, or --state IN:OUT.",
        )
    decided = {name: list(free)[column] for name, column in zip(names, chosen, strict=True)}
    undecided = {}
    for row, name in enumerate(names):
        for column, out in enumerate(free):
            if out in fits[name] and column != chosen[row] and _margin(row, column, chosen, scores) < _SAME:
                undecided[name] = out
    pairs = []
    for name, value in inputs.items():
        twins = tuple(other for other in inputs if other != name and inputs[other] == value)
        only = not twins and len(fits.get(name, [name])) == 1
        by = given_by if name in given else "the only one of its shape" if only else "name"
        is_told = name in given and given_by not in (BY_USER, BY_METADATA)
        pairs.append(Pair(name, given.get(name) or decided[name], by, twins, is_proved=only or is_told))
    return pairs, undecided


def _margin(row: int, column: int, chosen: Sequence[int], scores: Sequence[Sequence[float]]) -> float:
    """What the names lose when a state takes the output of another column, whose owner takes its own."""
    mine = chosen[row]
    loss = scores[row][mine] - scores[row][column]
    if column not in chosen:
        return loss
    other = chosen.index(column)
    return loss + scores[other][column] - scores[other][mine]


def similarity(one: str, other: str) -> float:
    """How much alike two names are, from 0 to 1, apart from what only says old or new.

    >>> similarity("past.conv", "present.conv"), similarity("h0", "hN"), similarity("h0", "cN") < 0.5
    (1.0, 1.0, True)
    """
    a, b = _core(one), _core(other)
    if not (a and b):
        return 0.0
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def _core(name: str) -> str:
    """A name without what says old or new: affixes, and the 0 or N of ``h0`` and ``hN``."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name.split(":")[0].replace("past_key_values", "past"))
    if len(words) == 1 and re.fullmatch(r"[a-z]n", words[0]):  # hn, cn
        words = [words[0][0]]
    if len(words) == 2 and len(words[0]) <= 2 and words[1].lower() in ("0", "n"):
        words = words[:1]
    lower = [word.lower() for word in words]
    return " ".join([word for word in lower if word not in _AFFIXES] or [word for word in lower if word in _PLAIN][:1])


def assign(scores: Sequence[Sequence[float]]) -> list[int]:
    """The column of each row, each used once, with the largest sum of scores (the Hungarian method).

    >>> assign([[1, 5], [2, 4]])
    [1, 0]
    """
    rows, columns = len(scores), len(scores[0]) if scores else 0
    row_price, column_price = [0.0] * (rows + 1), [0.0] * (columns + 1)
    owner = [0] * (columns + 1)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        least, came_from, seen = [float("inf")] * (columns + 1), [0] * (columns + 1), [False] * (columns + 1)
        while owner[column]:
            seen[column] = True
            here = owner[column]
            for to in range(1, columns + 1):
                cost = -scores[here - 1][to - 1] - row_price[here] - column_price[to]
                if not seen[to] and cost < least[to]:
                    least[to], came_from[to] = cost, column
            following = min((to for to in range(1, columns + 1) if not seen[to]), key=lambda to: least[to])
            step = least[following]
            for to in range(columns + 1):
                if seen[to]:
                    row_price[owner[to]] += step
                    column_price[to] -= step
                else:
                    least[to] -= step
            column = following
        while column:
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    found = [0] * rows
    for column in range(1, columns + 1):
        if owner[column]:
            found[owner[column] - 1] = column - 1
    return found


def _fits_nothing(name: str, value: Value, outputs: Mapping[str, Value]) -> ExportError:
    dtype, shape = value
    for out, (other, size) in outputs.items():
        longer = [at for at, (a, b) in enumerate(zip(shape, size, strict=False)) if a != b]
        if other == dtype and len(size) == len(shape) and len(longer) == 1 and similarity(name, out) > _ALIKE:
            return ExportError(
                f"the state {name} {list(shape)} grows: {out} is {list(size)}, of another size on axis {longer[0]}.",
                hint="edgemem adopts states of fixed size. Export the model with a cache of fixed length, or a window.",
            )
    left = [f"{out} {other} {list(size)}" for out, (other, size) in outputs.items()]
    return unpaired(name, f"{name} {dtype} {list(shape)}", left)


def unpaired(name: str, shown: str, left: Sequence[str]) -> ExportError:
    """The error for an input that fits no output that is left, with what it may be."""
    return ExportError(
        f"the input {shown} pairs with no output; left are {'; '.join(left) or 'none'}.",
        hint=f"If it is data: --input {name}. If it is given once a stream: --held {name}. If it is a constant: "
        f"--fixed {name}=VALUE.",
    )
