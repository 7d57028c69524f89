"""The outputs of a feed, gathered from its pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgemem.contract import Contract
from edgemem.dtypes import numpy_dtype
from edgemem.errors import InputError
from edgemem.runtimes.memory import Array

Result = Any
"""``None``; or an array where the contract has one output, else arrays by name."""


class Results:
    """Gathers outputs.

    Args:
        contract: The contract.
        batch: Streams, ``B``.
        steps: Steps of the whole feed.
        outputs: ``"last"``, ``"all"`` or ``"none"``.

    Attributes:
        every: Whether the outputs of every step must be computed.
    """

    def __init__(self, contract: Contract, batch: int, steps: int, outputs: str) -> None:
        self._specs = contract.output_specs
        self._outputs = outputs
        self._done = 0
        self._found: dict[str, Array] = {}
        # Overlap-add needs every frame, whoever reads the samples.
        self.every = outputs == "all" or any(spec.back_end is not None for spec in self._specs)
        if outputs == "all":
            for spec in self._specs:
                shape = (batch, steps * spec.step_items, *spec.item_shape)
                try:
                    self._found[spec.name] = np.empty(shape, numpy_dtype(spec.host_dtype))
                except (MemoryError, ValueError) as error:
                    raise InputError(
                        f"the outputs {spec.name!r} of {steps:,} steps, {list(shape)}, do not fit in memory.",
                        hint='Feed fewer steps at a time, or ask for outputs="last".',
                    ) from error

    def add(self, outputs: Mapping[str, Array]) -> None:
        """Take the outputs of the next piece, ``[B, N, *item_shape]`` by name."""
        if self._outputs == "none":
            return
        for spec in self._specs:
            values = outputs[spec.name]
            if self._outputs == "last":
                self._found[spec.name] = values[:, values.shape[1] - spec.step_items :]
            else:
                start = self._done * spec.step_items
                self._found[spec.name][:, start : start + values.shape[1]] = values
        spec = self._specs[0]
        self._done += outputs[spec.name].shape[1] // spec.step_items

    def result(self) -> Result:
        """What the caller gets; memory that is the caller's."""
        if not self._found:
            return None
        found = self._found
        if self._outputs == "last":
            found = {
                spec.name: (found[spec.name][:, 0] if spec.step_items == 1 else found[spec.name]).copy()
                for spec in self._specs
            }
        return found[self._specs[0].name] if len(self._specs) == 1 else found
