"""Whether every state changes as a stream advances, and has an effect on what is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgemem.contract import StateSpec, initial_state
from edgemem.dtypes import decode_bfloat16, encode_bfloat16
from edgemem.errors import VerificationError
from edgemem.export.verify.sequences import Sequences, by_step
from edgemem.measure import Array
from edgemem.runtimes import Session

_EARLY = 2


def check_effects(session: Session, given: Sequences) -> None:
    """Feed a stream: every state must change, and a change of any single state must have an effect.

    Args:
        session: The bundle, opened.
        given: Sequences with enough steps to fill the rings.

    Raises:
        VerificationError: A state kept its initial value, or no output depends on it.
    """
    contract = session.contract
    warm = session.stream(given.batch, held=given.held)
    last = given.steps - 1
    first = min(_EARLY, last - 3)
    warm.feed(given.between(0, first), outputs="none")
    early = warm.state(), warm.positions
    warm.feed(given.between(first, last - 2), outputs="none")
    unchanged = set(contract)
    for step in (last - 2, last - 1):  # a state may pass through its initial value, but not stay there
        warm.feed(given.between(step, step + 1), outputs="none")
        late = warm.state(), warm.positions
        unchanged -= {
            spec for spec in unchanged if not np.array_equal(late[0][spec.name], initial_state(spec, warm.batch))
        }
    if unchanged:
        name = min(spec.name for spec in unchanged)
        raise VerificationError(f"state {name!r} still has its initial value after {last} steps: it never changes.")
    without = list(contract)
    for state, positions in (late, early):  # what a state can do may be over by then, as when an output fades in
        if without:
            without = _without_effect(session, given, state, positions, without)
    if without:
        raise VerificationError(
            f"state {without[0].name!r} has no effect: neither the output nor another state depends on it.",
            hint="Remove it from the contract, or use it in forward().",
        )


def _without_effect(
    session: Session, given: Sequences, state: Mapping[str, Array], positions: Array, specs: Sequence[StateSpec]
) -> list[StateSpec]:
    """Those of ``specs`` that may be changed in a state, up and down, and nothing else changes."""
    baseline, found = _step(session, given, state, positions), []
    for spec in specs:
        if spec.update == "replace" and spec.growing_axis is None and spec.shape == () and spec.dtype == "int64":
            continue  # a counter: the comparison past the wrap shows whether it has an effect
        for sign in (1, -1):
            altered = {**state, spec.name: _changed(state[spec.name], spec.dtype, sign)}
            if not _equal(baseline, _step(session, given, altered, positions), spec):
                break
        else:
            found.append(spec)
    return found


def _step(session: Session, given: Sequences, state: Mapping[str, Array], positions: Array) -> dict[str, Array]:
    """The outputs of the last step from a state, and the state after it."""
    stream = session.stream(given.batch, held=given.held)
    stream.load_state(state, positions)
    outputs = by_step(given.contract, stream.step(given.between(given.steps - 1, given.steps)), 1)
    return {**{f"output {name}": value.copy() for name, value in outputs.items()}, **stream.state()}


def _equal(a: Mapping[str, Array], b: Mapping[str, Array], changed: StateSpec) -> bool:
    """Whether nothing differs, except an appended state that was changed: it always differs from itself."""
    return all(
        np.array_equal(a[name], b[name]) for name in a if not (name == changed.name and changed.update == "append")
    )


def _changed(value: Array, dtype: str, sign: int) -> Array:
    if dtype == "bfloat16":
        return encode_bfloat16(decode_bfloat16(value) * (1 + 0.5 * sign) + 0.25 * sign)
    if value.dtype == np.bool_:
        return np.asarray(~value)
    if value.dtype.kind == "f":
        return np.asarray(value * (1 + 0.5 * sign) + 0.25 * sign, dtype=value.dtype)
    return np.asarray(value + sign, dtype=value.dtype)
