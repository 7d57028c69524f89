"""Rings in fewer bits than a module computes in: its contract, and the module itself between whose calls they round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgemem.contract import Contract, StateSpec
from edgemem.dtypes import MemoryDType

Array = np.ndarray[Any, Any]

SCALE = "_scale"
"""Ends the name of the state that holds what each slot of an int8 ring is multiplied with."""
LEAST_SCALE = 1e-30
"""What a slot of zeros is divided by."""


def narrow_states(contract: Contract, dtype: MemoryDType) -> dict[str, tuple[StateSpec, ...]]:
    """What becomes of each float32 ring, by name: itself in ``dtype``, and of int8 also a scale ``[H, W, 1]`` a slot.

    A slot of one number stays as it is, for its scale would be as large, and so does a ring that starts with others
    than zeros.
    """
    found: dict[str, tuple[StateSpec, ...]] = {}
    for state in contract:
        if state.update != "append" or state.dtype != "float32" or state.initial != 0.0:
            continue
        ring = replace(state, dtype=dtype)
        if dtype != "int8":
            found[state.name] = (ring,)
        elif state.fixed_shape[2] > 1:
            name, *tensors = (part and f"{part}{SCALE}" for part in (state.name, state.input, state.output))
            shape = (*state.shape[:2], 1)
            found[state.name] = (ring, replace(state, name=name, shape=shape, input=tensors[0], output=tensors[1]))
    return found


def narrow_contract(contract: Contract, rings: Mapping[str, tuple[StateSpec, ...]]) -> Contract:
    """The contract with what :func:`narrow_states` gave, scales behind their rings."""
    states = tuple(new for state in contract for new in rings.get(state.name, (state,)))
    return replace(contract, states=states)


def widen(contract: Contract, states: Mapping[str, Array]) -> dict[str, Array]:
    """States by name, with int8 rings as the float32 numbers for which they and their scales stand."""
    found = dict(states)
    for spec in contract:
        scale = f"{spec.name}{SCALE}"
        if spec.update == "append" and spec.dtype == "int8" and scale in states:
            found[spec.name] = states[spec.name].astype(np.float32) * found.pop(scale)
    return found


class NarrowRings(nn.Module):
    """A module whose rings hold fewer bits. Within a call it computes with what was not rounded.

    Args:
        module: Follows the streaming protocol.
        dtype: Of its float32 rings.
    """

    def __init__(self, module: nn.Module, dtype: MemoryDType) -> None:
        super().__init__()
        self.module = module
        self._wide: Contract = module.contract()  # type: ignore[operator]
        self._rings = narrow_states(self._wide, dtype)

    def contract(self) -> Contract:
        """The module's contract with narrow rings."""
        return narrow_contract(self._wide, self._rings)

    def forward(self, x: Any, state: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """The module's call on widened rings; then its new entries are rounded."""
        given = dict(state)
        for name, (ring, *scale) in self._rings.items():
            given[name] = state[ring.name].float() * (given.pop(scale[0].name) if scale else 1.0)
        output, new = self.module(x, given)
        rounded = dict(new)
        for name, (_, *scale) in self._rings.items():
            entry = new[name]
            if not scale:
                rounded[name] = entry.half()
                continue
            rounded[scale[0].name] = factor = entry.abs().amax(dim=-1, keepdim=True) / 127
            rounded[name] = (entry / factor.clamp(min=LEAST_SCALE)).round().to(torch.int8)
        return output, rounded
