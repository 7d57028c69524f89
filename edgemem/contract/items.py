"""What a host feeds and gets, as arrays by name: parts of a longer input, and results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.contract.contract import Contract

Array = NDArray[Any]


def items_of_steps(contract: Contract, items: Mapping[str, Array], start: int, stop: int) -> dict[str, Array]:
    """The items of the steps from ``start`` to ``stop``.

    Args:
        contract: The contract.
        items: Of every data input, from step 0 on, ``[B, N, *item_shape]``.
        start: First step.
        stop: The step behind the last.
    """
    return {spec.name: items[spec.name][:, start * spec.step_items : stop * spec.step_items] for spec in contract.data}


def as_passed(contract: Contract, items: dict[str, Array]) -> Any:
    """What ``step`` and ``feed`` take for items by name: the array itself where the contract has one data input."""
    return items[contract.input.name] if len(items) == 1 else items


def results_by_name(contract: Contract, result: Any) -> dict[str, Array]:
    """What ``step`` or ``feed`` returned, every output by name."""
    return dict(result) if isinstance(result, Mapping) else {contract.output.name: np.asarray(result)}
