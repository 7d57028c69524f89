"""What happens to rows of real-valued data that are not finite: NaN from a sensor, or an overflow.

One NaN in a state stays there for ever, so every row is checked before it reaches the engine. Infinity counts as NaN: a
state that holds it becomes NaN at the next difference. A row is checked in the dtype that the graph takes, so a number
that is too large for it counts as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract, InputSpec
from edgemem.dtypes import decode_bfloat16
from edgemem.errors import InputError, NonFiniteError
from edgemem.runtimes.buffers import LAST, Buffers
from edgemem.runtimes.memory import Array

OnNan = Literal["stop", "skip", "hold", "pass"]
AS_IT_WAS = "The stream is as it was before the call."
_EXPONENT = np.uint16(0x7F80)  # of bfloat16; all ones in NaN and infinity


class NanPolicy:
    """The policy of one stream.

    Args:
        policy: ``"stop"`` raises. ``"skip"`` leaves the state of that row as it was. ``"hold"`` takes the last good
            item of that row instead, and skips where there has been none. ``"pass"`` checks nothing.
        contract: The contract.
        buffers: Where the last good items are kept.
        guard: Whether the guard is on, which turns ``"pass"`` into ``"stop"``.

    Attributes:
        checked: The data inputs that are checked: real values, unless the policy is ``"pass"``.
        holds: Whether the last good items are kept.
        skips: Whether a step can be skipped.

    Raises:
        InputError: There is no such policy, or steps of several items or inputs cannot be skipped.
    """

    def __init__(self, policy: OnNan, contract: Contract, buffers: Buffers, guard: bool) -> None:
        if policy not in get_args(OnNan):
            raise InputError(f"on_nan={policy!r} is not one of {', '.join(get_args(OnNan))}.")
        if policy == "skip" and not contract.is_plain:
            raise InputError(
                'on_nan="skip" needs a model that takes one item of one input at a step.', hint='Use "hold" or "stop".'
            )
        real = [spec for spec in contract.data if "float" in spec.dtype]
        self.checked = () if policy == "pass" and not guard else tuple(real)
        self.holds = policy == "hold" and bool(real)
        self.skips = policy in ("skip", "hold") and bool(real) and contract.is_plain
        self._buffers = buffers
        if self.holds:
            buffers.keep_last(self.checked)

    def admit(self, items: dict[str, Array], positions: NDArray[np.int64]) -> NDArray[np.bool_] | None:
        """Check items ``[B, N, ...]``; with ``"hold"``, replace those that are not finite.

        Returns:
            Which are to be skipped, bool ``[B, N]``; ``None`` if none are.

        Raises:
            NonFiniteError: The policy is ``"stop"``; or nothing can be held yet, and steps cannot be skipped.
        """
        skipped = None
        for spec in self.checked:
            good = finite_items(spec, items[spec.name])
            if good.all():
                continue
            if self.holds:
                last = self._buffers.arrays[LAST + spec.name]
                items[spec.name], good = _held(items[spec.name], good, last, finite_items(spec, last[:, np.newaxis]))
            if good.all():
                continue
            if not self.skips:
                raise not_finite(spec, items[spec.name], positions)
            skipped = ~good
        return skipped

    def remember(self, items: Mapping[str, Array]) -> None:
        """Keep the last of admitted items ``[B, N, ...]``, once the call that fed them has succeeded."""
        if self.holds:
            for spec in self.checked:
                if (given := items[spec.name]).shape[1]:
                    good = finite_items(spec, given[:, -1:])[:, 0]
                    self._buffers.arrays[LAST + spec.name][good] = given[good, -1]

    def step_keeper(self, step: Array) -> Callable[[], None] | None:
        """As :meth:`remember` for ``step`` ``[B, 1, ...]`` of the only input, which is written again and again.

        Returns:
            A function to call after a step that was finite, in about 0.1 µs; ``None`` where nothing is kept.
        """
        if not self.holds:
            return None
        # Python copies the bytes of a memoryview in half the time that numpy takes for so small an array.
        last, item = (_bytes_of(array) for array in (self._buffers.arrays[LAST + self.checked[0].name], step))

        def keep() -> None:
            last[:] = item

        return keep


def _bytes_of(array: Array) -> memoryview:
    """The bytes of an array whose elements lie one after another, to be read and written."""
    return array.reshape(-1).view(np.uint8).data


def _held(
    items: Array, good: NDArray[np.bool_], last: Array, has_last: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Items ``[B, N, ...]`` with each bad one replaced by the one before it, and which are good then."""
    items = np.concatenate([last[:, np.newaxis], items], axis=1)
    good = np.concatenate([has_last, good], axis=1)
    source = np.maximum.accumulate(np.where(good, np.arange(good.shape[1]), 0), axis=1)
    rows = np.arange(len(items))[:, np.newaxis]
    return items[rows, source][:, 1:], good[rows, source][:, 1:]


def finite_items(spec: InputSpec, items: Array) -> NDArray[np.bool_]:
    """Which items ``[B, N, ...]`` are finite, bool ``[B, N]``; bfloat16 may be given as its bits."""
    finite = (items & _EXPONENT) != _EXPONENT if _is_bits(spec, items) else np.isfinite(items)
    return np.asarray(finite.all(axis=tuple(range(2, items.ndim))))


def step_check(spec: InputSpec, step: Array) -> Callable[[], bool]:
    """A function that tells whether a value of ``step``, which is written again and again, is not finite.

    It takes about 0.4 µs for 64 values: the flags lie in a bytearray, in which Python finds a zero fastest.
    """
    found = bytearray(step.size)
    flags = np.frombuffer(found, bool).reshape(step.shape)
    if _is_bits(spec, step):
        exponents = np.empty_like(step)

        def bits_are_bad() -> bool:
            np.bitwise_and(step, _EXPONENT, exponents)
            np.not_equal(exponents, _EXPONENT, flags)
            return 0 in found

        return bits_are_bad

    def is_bad(isfinite: Callable[[Array, Array], object] = np.isfinite) -> bool:
        isfinite(step, flags)
        return 0 in found

    return is_bad


def not_finite(spec: InputSpec, items: Array, positions: NDArray[np.int64]) -> NonFiniteError:
    """The error for items ``[B, N, ...]``, of which one is not finite: it names the first."""
    row, item = (int(i) for i in np.argwhere(~finite_items(spec, items))[0])
    values = decode_bfloat16(items[row, item]) if _is_bits(spec, items) else items[row, item]
    value = values[~np.isfinite(values)][0]
    return NonFiniteError(
        f"{spec.name} at position {positions[row] + item // spec.step_items} (stream {row}) holds {value}.",
        hint=f'{AS_IT_WAS} To go on without such rows, choose "skip" or "hold": --on-nan, or stream(on_nan=...).',
    )


def _is_bits(spec: InputSpec, items: Array) -> bool:
    return spec.dtype == "bfloat16" and items.dtype == np.uint16
