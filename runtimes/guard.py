"""What is asked of values: finite where the guard is on, and states and positions that fit the contract."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import POSITION, Contract, StateSpec
from edgemem.dtypes import decode_bfloat16, numpy_dtype
from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes.memory import Array
from edgemem.runtimes.on_nan import AS_IT_WAS

Rows = Iterable[int] | int | None
LAST_POSITION = 1 << 62
"""The last position that a stream may be put to. From there no stream reaches the end of int64."""


def check_new(
    contract: Contract,
    time: int,
    positions: NDArray[np.int64],
    outputs: Mapping[str, Array],
    new_states: Iterator[tuple[StateSpec, Array]],
) -> None:
    """Reject a computation of ``time`` steps whose outputs ``[B, N, ...]`` or new states are not finite.

    Raises:
        NonFiniteError: The message names the tensor, the position and the stream.
    """
    for spec in contract.output_specs:
        array = outputs[spec.name]
        if index := _first_nonfinite(spec.host_dtype, array):
            step = time - (array.shape[1] - index[1] - 1) // spec.step_items - 1
            _reject(f"output {spec.name!r}", int(positions[index[0]]), index[0], step, array[index])
    for state, value in new_states:
        if state.starts_finite and (index := _first_nonfinite(state.dtype, value)):
            appended = index[2] if state.update == "append" else None
            shown = _value(state.dtype, value, index)
            _reject(f"state {state.name!r}", int(positions[index[0]]), index[0], appended, shown, time)


def _reject(what: str, first: int, row: int, step: int | None, value: object, time: int = 1) -> None:
    if step is None and time > 1:
        where = f"positions {first} to {first + time - 1}"
    else:
        where = f"position {first + (step or 0)}"
    raise NonFiniteError(f"{what} became {value} at {where} (stream {row}).", hint=AS_IT_WAS)


def _first_nonfinite(dtype: str, array: Array) -> tuple[int, ...] | None:
    """Index of the first NaN or infinity, or ``None``."""
    if dtype == "bfloat16" and array.dtype == np.uint16:
        array = decode_bfloat16(array)
    if array.dtype.kind != "f" or (finite := np.isfinite(array)).all():
        return None
    return tuple(int(i) for i in np.argwhere(~finite)[0])


def _value(dtype: str, array: Array, index: tuple[int, ...]) -> str:
    value = array[index]
    if dtype == "bfloat16" and array.dtype == np.uint16:
        value = decode_bfloat16(np.asarray(value))[()]
    return str(value)


def checked_rows(rows: Rows, batch: int) -> list[int] | None:
    """Indices of streams as a list; ``None`` stays ``None``.

    Raises:
        InputError: One is not an index of the batch.
    """
    if rows is None:
        return None
    try:
        chosen = [operator.index(row) for row in ([rows] if isinstance(rows, int) else rows)]
    except TypeError as error:
        raise InputError(f"rows are indices of streams, got {rows!r}.") from error
    if wrong := [row for row in chosen if not 0 <= row < batch]:
        raise InputError(f"row {wrong[0]} of a stream with batch {batch}: rows run from 0 to {batch - 1}.")
    return chosen


def checked_positions(contract: Contract, positions: Any, batch: int) -> NDArray[np.int64]:
    """Positions as int64 ``[B]``; one number serves every stream.

    Raises:
        InputError: They have the wrong dtype, shape or range.
    """
    array = np.asarray(positions)
    if array.dtype.kind not in "iu" or array.shape not in ((), (batch,)):
        raise InputError(f"positions of dtype {array.dtype} and shape {list(array.shape)}, wanted integers [{batch}].")
    if array.min() < 0 or array.max() > LAST_POSITION:
        wrong = int(array.min() if array.min() < 0 else array.max())
        raise InputError(f"positions must be from 0 to {LAST_POSITION}, got {wrong}.")
    limit = contract.max_position
    if limit is not None and array.max() > limit:
        raise InputError(f"positions of this model end at {limit}, got {int(array.max())}.")
    return np.broadcast_to(array, (batch,)).astype(np.int64)


def checked_states(
    contract: Contract, state: Mapping[str, Array], positions: NDArray[np.int64], finite: bool
) -> dict[str, Array]:
    """Every state by name, ``[B, *shape]``, held to the contract.

    Raises:
        InputError: A name, dtype or shape is wrong.
        NonFiniteError: ``finite`` is asked for, and a state holds NaN or infinity.
    """
    names = {spec.name for spec in contract}
    if names != set(state):
        missing, unknown = sorted(names - set(state)), sorted(set(state) - names)
        raise InputError(f"the state lacks {missing or 'nothing'} and holds {unknown or 'nothing'} unknown.")
    return {spec.name: _checked_state(contract, spec, state[spec.name], positions, finite) for spec in contract}


def _checked_state(
    contract: Contract, spec: StateSpec, value: Array, positions: NDArray[np.int64], finite: bool
) -> Array:
    value = np.asarray(value)
    batch = len(positions)
    shape: tuple[int, ...] = (batch, *spec.fixed_shape)
    if spec.growing_axis is not None:
        if batch > 1 and len(set(positions.tolist())) > 1:
            raise InputError(f"state {spec.name!r} grows: every stream of the batch must be at one position.")
        axis = 1 + spec.growing_axis
        shape = (*shape[:axis], int(positions[0]), *shape[axis + 1 :])
    if value.dtype != numpy_dtype(spec.dtype) or value.shape != shape:
        raise InputError(
            f"state {spec.name!r} of dtype {value.dtype} and shape {list(value.shape)}, "
            f"wanted {numpy_dtype(spec.dtype)} {list(shape)}."
        )
    if contract.position == "none" and spec.name == POSITION and not np.array_equal(value, positions):
        raise InputError(f"the state 'position' is {value.tolist()}, positions are {positions.tolist()}.")
    if finite and spec.starts_finite and (index := _first_nonfinite(spec.dtype, value)):
        raise NonFiniteError(f"state {spec.name!r} to load holds a value that is not finite at {list(index)}.")
    return value
