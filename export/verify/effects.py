"""Whether every state changes as a stream advances, and has an effect on what is computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemem.contract import StateSpec, initial_state
from edgemem.dtypes import decode_bfloat16, encode_bfloat16
from edgemem.errors import VerificationError
from edgemem.runtimes import Session, Stream


def check_effects(session: Session, data: np.ndarray[Any, Any]) -> None:
    """Feed a stream: every state must change, and a change of any single state must have an effect.

    Args:
        session: The bundle, opened.
        data: ``[B, T, ...]``, with enough steps to fill the rings.

    Raises:
        VerificationError: A state kept its initial value, or no output depends on it.
    """
    contract = session.contract
    warm = session.stream(data.shape[0])
    warm.feed(data[:, :-3], outputs="none")
    unchanged = set(contract)
    for step in (-3, -2):  # a state may pass through its initial value, but not stay there
        warm.feed(data[:, step : step + 1], outputs="none")
        state, positions = warm.state(), warm.positions
        unchanged -= {
            spec for spec in unchanged if not np.array_equal(state[spec.name], initial_state(spec, warm.batch))
        }
    if unchanged:
        name = min(spec.name for spec in unchanged)
        raise VerificationError(
            f"state {name!r} still has its initial value after {data.shape[1] - 1} steps: it never changes."
        )
    baseline = _step(warm, data[:, -1:])
    for spec in contract:
        if spec.update == "replace" and spec.growing_axis is None and spec.shape == () and spec.dtype == "int64":
            continue  # a counter: the comparison past the wrap shows whether it has an effect
        altered = session.stream(data.shape[0])
        altered.load_state({**state, spec.name: _changed(state[spec.name], spec.dtype)}, positions)
        if _equal(baseline, _step(altered, data[:, -1:]), spec):
            raise VerificationError(
                f"state {spec.name!r} has no effect: neither the output nor another state depends on it.",
                hint="Remove it from the contract, or use it in forward().",
            )


def _step(stream: Stream, x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    output = stream.step(x[:, 0]).copy()
    return {"": output, **stream.state()}


def _equal(a: Mapping[str, np.ndarray[Any, Any]], b: Mapping[str, np.ndarray[Any, Any]], changed: StateSpec) -> bool:
    """Whether nothing differs, except an appended state that was changed: it always differs from itself."""
    return all(
        np.array_equal(a[name], b[name]) for name in a if not (name == changed.name and changed.update == "append")
    )


def _changed(value: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        return encode_bfloat16(decode_bfloat16(value) * 1.5 + 0.25)
    if value.dtype == np.bool_:
        return np.asarray(~value)
    if value.dtype.kind == "f":
        return np.asarray(value * 1.5 + 0.25, dtype=value.dtype)
    return np.asarray(value + 1, dtype=value.dtype)
