"""A module whose rings are written inside its own forward pass, for hosts that cannot write them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from edgemem.contract import POSITION, Contract, StateSpec
from edgemem.protocol import steps_of


class Sealed(nn.Module):
    """A module whose rings are written inside the graph: every state is replaced, the position too.

    For hosts that cannot write a ring. The weights and the numbers are the same; every step copies the rings.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._open: Contract = module.contract()  # type: ignore[operator]

    def contract(self) -> Contract:
        """The module's contract with ``replace`` everywhere and, where it has a position, a state of that name."""
        states = [replace(spec, update="replace") for spec in self._open]
        if self._open.position == "input":
            states.append(StateSpec(POSITION, (), "int64"))
        return replace(self._open, states=tuple(states), position="none", output_indices=False)

    def forward(
        self, x: Any, state: dict[str, Tensor], output_indices: Tensor | None = None
    ) -> tuple[Any, dict[str, Tensor]]:
        """The module's call, then the ring writes."""
        wanted = () if output_indices is None else (output_indices,)
        output, new = self.module(x, state, *wanted)
        sealed = dict(new)
        if self._open.position == "input":
            start, time = state[POSITION], steps_of(self._open, x)
            sealed[POSITION] = start + time
            positions = start[:, None] + torch.arange(time, device=start.device)  # [B, T]
            for spec in self._open:
                if spec.window is not None:
                    slots = torch.remainder(positions, spec.window)[:, None, :, None]
                    entries = new[spec.name]  # [B, H, T, D]
                    sealed[spec.name] = state[spec.name].scatter(2, slots.expand_as(entries), entries)
        return output, sealed
