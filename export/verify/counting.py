"""No module may count in float32, which counts to 2^24 and then stops, nor in int32, which wraps.

The engine is compared with torch, so it cannot show what torch itself computes wrong. Two things are looked at here:

* a state that changes by one amount, in every step or in those where something happens, is a counter: from 2^24 in
  float32, or near the end of a narrow integer, a step must still count;
* from a far position, the module in float32 must give what it gives in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemem.contract import Contract, StateSpec
from edgemem.errors import VerificationError
from edgemem.export.verify.sequences import Sequences
from edgemem.export.verify.whole import module_input
from edgemem.export.verify.widened import in_float64
from edgemem.measure import Array
from edgemem.origins import Origins, in_words, tensors_in
from edgemem.protocol import TORCH_DTYPES, initial_tensors, module_inside

LARGEST_FLOAT = 2**24
"""float32 holds every whole number up to here."""


_FIRST_STEPS = 40


def random_state(contract: Contract, batch: int, seed: int) -> dict[str, Tensor]:
    """A state with values from 0.5 to 1.5, whole numbers 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.rand(value.shape, generator=generator) + 0.5).to(value.dtype)
        for name, value in initial_tensors(contract, batch).items()
    }


def counting_states(module: nn.Module, contract: Contract, given: Sequences) -> dict[str, Tensor]:
    """The states that count steps: for each, which of its elements do, bool ``[*shape]`` with a batch axis of 1.

    Such an element changes by one amount, which is not 0, from any state on any data.
    """
    candidates = [
        spec
        for spec in contract
        if spec.update == "replace"
        and spec.growing_axis is None
        and spec.dtype != "bool"
        and spec.batch_axis is not None
    ]
    changes: dict[str, list[Tensor]] = {spec.name: [] for spec in candidates}
    for seed in (1, 2):
        state = random_state(contract, given.batch, seed)
        new = in_float64(module, partial(_step, module, contract, given, seed, state))
        if new is None:
            return {}
        for spec in candidates:
            changes[spec.name].append(new[spec.name].double() - state[spec.name].double())
    found = {spec.name: mask for spec in candidates if (mask := _constant(spec, changes[spec.name])) is not None}
    if not found:
        return {}
    for name, steady in _steady(module, contract, given, found).items():
        found[name] = found[name] & steady
    return {name: mask for name, mask in found.items() if bool(mask.any())}


def _steady(module: nn.Module, contract: Contract, given: Sequences, names: Iterable[str]) -> dict[str, Tensor]:
    """Which elements of the named states also change by one amount, which is not 0, at each of a stream's first steps.

    A running maximum that decays does so from a random state, but not in a stream.
    """
    seen, found = _first_states(module, contract, given), {}
    for name in names:
        changes = np.diff(np.stack([state[name][:1].astype(np.float64) for state in seen]), axis=0)
        steady = (changes[0] != 0) & (np.abs(changes - changes[0]) < 1e-4).all(axis=0)
        found[name] = torch.from_numpy(steady).movedim(0, contract[name].batch_axis or 0)
    return found


def _first_states(module: nn.Module, contract: Contract, given: Sequences) -> list[dict[str, Array]]:
    """Every state, batch axis first, after each of the first steps."""
    from edgemem.runtimes.torch_reference import TorchSession

    stream, seen = TorchSession(contract, module).stream(given.batch, held=given.held), []
    for step in range(min(_FIRST_STEPS, given.steps)):
        stream.feed(given.between(step, step + 1), outputs="none")
        seen.append(stream.state())
    return seen


def narrow_counter(
    module: nn.Module, contract: Contract, given: Sequences, counting: dict[str, Tensor]
) -> VerificationError | None:
    """The error for a module with a state that counts steps or events in a dtype that cannot count for ever.

    Args:
        module: The module.
        contract: Its contract.
        given: Sequences.
        counting: The states that count steps, see :func:`counting_states`.
    """
    end_of_stream = math.inf if contract.max_position is None else contract.max_position
    narrow = [
        spec
        for spec in contract
        if spec.update == "replace"
        and spec.growing_axis is None
        and spec.batch_axis is not None
        and spec.dtype in ("float32", "int32", "int16", "int8", "uint8")
        and end_of_stream > _most(TORCH_DTYPES[spec.dtype])
    ]
    seen = _first_states(module, contract, given) if narrow else []
    for spec in narrow:
        values = np.stack([state[spec.name].astype(np.float64) for state in seen])
        amounts = torch.from_numpy(_amounts(values)).movedim(0, spec.batch_axis or 0)
        if spec.name in counting:
            amounts = amounts + (amounts == 0) * counting[spec.name]
        if bool(amounts.any()) and _loses_count(module, contract, given, spec, amounts):
            dtype = TORCH_DTYPES[spec.dtype]
            ends = "stops" if dtype.is_floating_point else "wraps"
            return VerificationError(
                f"the state {spec.name!r} counts in {spec.dtype}, which {ends} at {_most(dtype):,}.",
                hint="Declare it as int64, and convert what is computed from it, such as a remainder or a quotient.",
            )
    return None


def _most(dtype: torch.dtype) -> int:
    """How far a dtype counts."""
    return LARGEST_FLOAT if dtype.is_floating_point else torch.iinfo(dtype).max


def _amounts(values: Array) -> Array:
    """By how much each element counts, ``[1, *shape]``; 0 where it does not.

    Args:
        values: The state of every stream after each step, ``[T, B, *shape]``. An element counts if it changes by one
            amount where it changes, in every stream and step.
    """
    changes = np.diff(values, axis=0).reshape(-1, *values.shape[2:])
    lowest, highest = changes.min(axis=0), changes.max(axis=0)
    amount = np.where(np.abs(lowest) > np.abs(highest), lowest, highest)
    counts = (np.minimum(np.abs(changes), np.abs(changes - amount)) <= 1e-4 * np.abs(amount)).all(axis=0)
    return np.asarray(np.where(counts, amount, 0.0))[np.newaxis]


def _loses_count(module: nn.Module, contract: Contract, given: Sequences, spec: StateSpec, amounts: Tensor) -> bool:
    """Whether elements of a state count far away, exactly or in integers, and float32 stands still or integers wrap."""
    state, dtype = random_state(contract, given.batch, 1), TORCH_DTYPES[spec.dtype]
    mask = (amounts != 0).expand_as(state[spec.name])
    far = _most(dtype) if dtype.is_floating_point else _most(dtype) // 2
    place = (torch.sign(amounts) * far).to(dtype).expand_as(state[spec.name])[mask]
    state[spec.name][mask] = place
    for at in range(min(_FIRST_STEPS, given.steps)):
        new = _step(module, contract, given, at, state)[spec.name][mask]
        if not dtype.is_floating_point:
            counted = new.double() == place.double() + amounts.expand_as(state[spec.name])[mask]
            if bool(counted.any()):
                return True
            continue
        still = new == place
        if not bool(still.any()):
            continue
        wide = in_float64(module, partial(_step, module, contract, given, at, state))
        if wide is not None and bool((still & (wide[spec.name][mask] != place)).any()):
            return True
    return False


def lossy_cast(module: nn.Module, contract: Contract, given: Sequences, state: dict[str, Tensor]) -> str | None:
    """The submodule that first makes float32 of a whole number beyond 2^24, in words; ``None`` if none does."""
    own = module_inside(module)
    casts = _LossyCasts(own)
    with torch.no_grad(), casts:
        module(module_input(contract, given, 0, given.steps), state)
    return None if casts.first is None else in_words(own, casts.first)


class _LossyCasts(Origins):  # type: ignore[no-untyped-call]
    first: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if (
            self.first is None
            and any(made.dtype == torch.float32 for made in tensors_in(result))
            and any(int(value.abs().max()) > LARGEST_FLOAT for value in _whole_numbers(args))
        ):
            self.first = self.running or ""
        return result


def _whole_numbers(args: Any) -> Iterator[Tensor]:
    for value in tensors_in(args):
        if value.numel() and not value.is_floating_point() and value.dtype != torch.bool:
            yield value


def _step(module: nn.Module, contract: Contract, given: Sequences, at: int, state: dict[str, Tensor]) -> dict[str, Any]:
    with torch.no_grad():
        x = module_input(contract, given, at, at + 1)
        new: dict[str, Any] = module(x, {name: value.clone() for name, value in state.items()})[1]
    return new


def _constant(spec: StateSpec, changes: list[Tensor]) -> Tensor | None:
    """Which elements changed by the same amount in every stream and call, if any."""
    assert spec.batch_axis is not None
    rows = torch.cat(changes, dim=spec.batch_axis)
    first = rows.narrow(spec.batch_axis, 0, 1)
    mask = (first != 0) & (rows - first).abs().amax(dim=spec.batch_axis, keepdim=True).lt(1e-9)
    return mask if bool(mask.any()) else None
