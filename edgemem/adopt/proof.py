"""What calling a graph shows: whether its states are states, its rows independent, and its pairs the right ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.adopt.options import BY_USER
from edgemem.adopt.pairing import Pair
from edgemem.adopt.subject import Subject
from edgemem.errors import ExportError, VerificationError

Array = NDArray[Any]
TOLERANCE = 1e-4
"""Largest difference between two ways to compute the same, as a share of an output's spread: float32 rounds."""
_STEPS, _BATCH = 24, 3
_NO_MATTER = "an exchange changes nothing"


def run(subject: Subject, steps: int, batch: int = 1, seed: int = 0) -> list[dict[str, Array]]:
    """Every output of each step of a stream of random data, fed back."""
    generator = np.random.default_rng(seed)
    held, states = subject.random_held(batch, generator), subject.first_states(batch)
    found = []
    for _ in range(steps):
        outputs = subject.call(subject.random_data(batch, 1, generator), held, states)
        states = subject.next_states(outputs)
        found.append(outputs)
    return found


def refuse_dead_states(subject: Subject) -> None:
    """Feed back some steps, then change each state alone: some output must move.

    Raises:
        ExportError: A state has no effect, or the stream does not stay finite.
    """
    last = run(subject, _STEPS)[-1]
    for name, value in last.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise ExportError(
                f"fed back, {name} is NaN or infinite after {_STEPS} steps.",
                hint="Name the states with --state IN:OUT, or give their first values with --initial.",
            )
    generator = np.random.default_rng(1)
    states = subject.next_states(last)
    data, held = subject.random_data(1, 1, generator), subject.random_held(1, generator)
    usual = subject.call(data, held, states)
    for name, value in states.items():
        changed = subject.call(data, held, {**states, name: _moved(value, generator)})
        if all(np.array_equal(changed[out], usual[out]) for out in usual):
            raise ExportError(
                f"the input {name} moves no output, so it is not a state.",
                hint=f"If it is a constant: --fixed {name}=0. If the file is wrong, export the model again.",
            )


def _moved(value: Array, generator: np.random.Generator) -> Array:
    """Another value of the same kind."""
    if value.dtype == bool:
        return ~value
    change = generator.standard_normal(value.shape) if value.dtype.kind == "f" else np.ones(value.shape)
    return np.asarray(value + change.astype(value.dtype))


def rows_are_independent(subject: Subject) -> bool:
    """Whether a stream in a batch computes the same whatever the others are, and the same as alone."""
    if not subject.has_free_batch:
        return False
    generator = np.random.default_rng(2)
    rows = [_row_inputs(subject, generator) for _ in range(_BATCH + 1)]
    try:
        alone = subject.graph.run(rows[0][0] | dict(subject.fixed))
        axes = rows[0][1]
        joined = [
            subject.graph.run(_stacked([rows[at][0] for at in chosen], axes) | dict(subject.fixed))
            for chosen in ((0, 1, 2), (0, 3, 3))
        ]
    except ExportError:
        return False
    for name, single in alone.items():
        first, second = joined[0][name], joined[1][name]
        axis = next((at for at, (a, b) in enumerate(zip(single.shape, first.shape, strict=False)) if a != b), None)
        if single.ndim != first.ndim or axis is None or first.shape[axis] != _BATCH or single.shape[axis] != 1:
            return False
        row, again = first.take([0], axis), second.take([0], axis)
        if not np.array_equal(row, again, equal_nan=row.dtype.kind == "f") or difference(row, single) > TOLERANCE:
            return False
    return True


def _row_inputs(subject: Subject, generator: np.random.Generator) -> tuple[dict[str, Array], dict[str, int]]:
    """Inputs of one stream somewhere in its middle, and the batch axis of each."""
    states = {}
    for name, value in subject.first_states(1).items():
        noise = generator.standard_normal(value.shape) if value.dtype.kind == "f" else np.zeros(value.shape)
        states[name] = value + (0.1 * noise).astype(value.dtype)
    axes = {data.name: data.batch_axis for data in subject.data}
    axes |= {owner.tensor.name: owner.batch_axis for owner in (*subject.held, *subject.states)}
    found = {**subject.random_data(1, 1, generator), **subject.random_held(1, generator), **states}
    return found, {name: axis for name, axis in axes.items() if axis is not None}


def _stacked(rows: Sequence[Mapping[str, Array]], axes: Mapping[str, int]) -> dict[str, Array]:
    return {name: np.concatenate([row[name] for row in rows], axis=axis) for name, axis in axes.items()}


def difference(got: Array, wanted: Array) -> float:
    """Largest difference as a share of the spread of what is wanted; infinite where integers differ."""
    if got.shape != wanted.shape:
        return float("inf")
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    distance = float(np.abs(got.astype(np.float64) - wanted).max(initial=0.0))
    if distance == 0:
        return 0.0
    spread = float(wanted.std(dtype=np.float64))
    return distance / max(spread, float(np.abs(wanted).max()) * 2.0**-20, 1e-30)


@dataclass(frozen=True)
class Evidence:
    """What tells one pairing from another.

    Attributes:
        what: In words: ``"the sequence form"``.
        error: The error of a pairing, as a share of the outputs' spread.
        is_binding: Whether a model that agrees with it in no pairing is refused.
    """

    what: str
    error: Callable[[Subject], float]
    is_binding: bool = True


def settle_pairs(subject: Subject, undecided: Mapping[str, str], evidence: Sequence[Evidence]) -> Subject:
    """Try every exchange of two states that could be each other's.

    Args:
        subject: The subject with its proposed pairs.
        undecided: Inputs whose names do not decide, each with another output that would do.
        evidence: What is at hand.

    Returns:
        The subject with the pairs that the evidence shows; without evidence, those of the names, as not proved.

    Raises:
        ExportError: Neither names nor evidence decide; both proposals are shown.
        VerificationError: Pairs that the user named contradict the evidence.
    """
    for each in evidence:
        subject = _settled(subject, each)
    for pair in subject.pairs:
        if pair.input in undecided and not pair.is_proved and _NO_MATTER not in pair.by:
            raise _ambiguous(pair, undecided[pair.input], subject.pairs)
    return subject


def _ambiguous(pair: Pair, rival: str, pairs: Sequence[Pair]) -> ExportError:
    owner = next((p for p in pairs if p.output == rival), None)
    one, two = f"{pair.input}:{pair.output}", f"{pair.input}:{rival}"
    if owner is not None:
        one, two = f"{one} --state {owner.input}:{owner.output}", f"{two} --state {owner.input}:{pair.output}"
    return ExportError(
        f"names do not tell which output is the new value of {pair.input}: {pair.output} or {rival}.",
        hint=f"Say which: --state {one}, or --state {two}; or let --sequence or --recorded decide.",
    )


def _settled(subject: Subject, evidence: Evidence) -> Subject:
    """The pairing that one piece of evidence shows."""
    swaps = [(pair.input, twin) for pair in subject.pairs for twin in pair.twins if pair.input < twin]
    if evidence.error(subject) <= TOLERANCE:
        unlike = {name for swap in swaps if evidence.error(_swapped(subject, *swap)) > TOLERANCE for name in swap}
        return subject.with_pairs([_proved(pair, evidence, pair.input in unlike) for pair in subject.pairs])
    for swap in swaps:
        better = _swapped(subject, *swap)
        if evidence.error(better) <= TOLERANCE:
            _refuse_named(subject, better, swap, evidence)
            pairs = [replace(p, by=evidence.what) if p.input in swap else p for p in better.pairs]
            return _settled(subject.with_pairs(pairs), evidence)
    if not evidence.is_binding:
        return subject
    raise VerificationError(
        f"{evidence.what} does not agree with the steps, in any pairing that was tried.",
        hint="Check that both are of the same weights, and that --takes, --context and --initial are right.",
    )


def _proved(pair: Pair, evidence: Evidence, is_told_apart: bool) -> Pair:
    if not pair.twins or pair.is_proved:
        return pair
    if is_told_apart:
        by = pair.by if pair.by == evidence.what else f"{pair.by}, proved by {evidence.what}"
        return replace(pair, is_proved=True, by=by)
    return pair if _NO_MATTER in pair.by else replace(pair, by=f"{pair.by}; {_NO_MATTER}")


def _refuse_named(subject: Subject, better: Subject, swap: Sequence[str], evidence: Evidence) -> None:
    right = {pair.input: pair.output for pair in better.pairs}
    for pair in subject.pairs:
        if pair.input in swap and pair.by == BY_USER:
            raise VerificationError(
                f"--state {pair.input}:{pair.output} contradicts {evidence.what}, which agrees with "
                f"{pair.input}:{right[pair.input]}.",
                hint=f"Use --state {pair.input}:{right[pair.input]}, or leave it out.",
            )


def _swapped(subject: Subject, one: str, other: str) -> Subject:
    outputs = {pair.input: pair.output for pair in subject.pairs}
    exchanged = {one: outputs[other], other: outputs[one]}
    return subject.with_pairs([replace(p, output=exchanged.get(p.input, p.output)) for p in subject.pairs])
