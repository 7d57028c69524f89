"""What a host feeds and gets, by name."""

from __future__ import annotations

import numpy as np

from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.contract.items import as_passed, items_of_steps, results_by_name

STATES = (StateSpec("s", (1,)),)
FRAMES = InputSpec("frames", (), takes=4)
ONE = Contract((FRAMES,), (OutputSpec("y", (2,)),), STATES, position="none")
TWO = Contract((FRAMES, InputSpec("rows", (3,))), (OutputSpec("y", (2,)), OutputSpec("z", ())), STATES, position="none")


def test_a_step_takes_as_many_items_of_an_input_as_the_contract_says() -> None:
    items = {"frames": np.arange(20)[None], "rows": np.arange(15).reshape(1, 5, 3)}
    part = items_of_steps(TWO, items, 1, 3)
    np.testing.assert_array_equal(part["frames"], np.arange(4, 12)[None])
    np.testing.assert_array_equal(part["rows"], items["rows"][:, 1:3])
    assert as_passed(TWO, part) is part
    assert as_passed(ONE, {"frames": part["frames"]}) is part["frames"]


def test_a_result_is_known_by_its_outputs_name() -> None:
    value = np.zeros((1, 2))
    assert results_by_name(ONE, value)["y"] is value
    assert list(results_by_name(TWO, {"y": value, "z": value})) == ["y", "z"]
