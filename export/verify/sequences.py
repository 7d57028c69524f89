"""Random sequences for every input of a model, as a host feeds them, and results put in order of steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edgemem.contract import Contract
from edgemem.contract.items import as_passed, items_of_steps, results_by_name
from edgemem.measure import Array
from edgemem.protocol import random_values


@dataclass(frozen=True)
class Sequences:
    """What a host feeds to ``B`` streams over a number of steps.

    Attributes:
        contract: The contract of the model.
        steps: The number of steps.
        data: Every data input by name, ``[B, steps * step_items, *item_shape]``.
        held: Every held input by name, ``[B, *shape]``.
    """

    contract: Contract
    steps: int
    data: dict[str, Array]
    held: dict[str, Array]

    @classmethod
    def random(cls, contract: Contract, batch: int, steps: int, seed: int) -> Sequences:
        """Uniform token ids and standard normal values."""
        generator = torch.Generator().manual_seed(seed)

        def values(spec: Any, shape: tuple[int, ...]) -> Array:
            found = random_values(spec, shape, generator)
            return np.asarray((found.float() if found.dtype == torch.bfloat16 else found).numpy())

        return cls(
            contract,
            steps,
            {spec.name: values(spec, (batch, steps * spec.step_items, *spec.item_shape)) for spec in contract.data},
            {spec.name: values(spec, (batch, *spec.shape)) for spec in contract.held},
        )

    @property
    def batch(self) -> int:
        """Streams, ``B``."""
        return len(self.data[self.contract.input.name])

    def row(self, index: int) -> Sequences:
        """One stream alone."""
        one = slice(index, index + 1)
        data = {name: value[one] for name, value in self.data.items()}
        return Sequences(self.contract, self.steps, data, {name: value[one] for name, value in self.held.items()})

    def first(self, steps: int) -> Sequences:
        """The first steps."""
        return Sequences(self.contract, steps, self._between(0, steps), self.held)

    def between(self, start: int, stop: int) -> Any:
        """What ``feed`` takes for the steps from ``start`` to ``stop``: an array, or arrays by name."""
        return as_passed(self.contract, self._between(start, stop))

    def _between(self, start: int, stop: int) -> dict[str, Array]:
        return items_of_steps(self.contract, self.data, start, stop)


def by_step(contract: Contract, result: Any, steps: int) -> dict[str, Array]:
    """What ``step`` or ``feed`` returned, every output by name: ``[B, steps, items, *item_shape]``."""
    found = results_by_name(contract, result)
    return {
        spec.name: found[spec.name].reshape(len(found[spec.name]), steps, spec.step_items, *spec.item_shape)
        for spec in contract.output_specs
    }
