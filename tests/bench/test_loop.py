"""The loop of the benchmark chooses its inputs as ``edgemem run`` does, and refuses nonsense."""

from __future__ import annotations

import numpy as np
import pytest

import edgemem
from edgemem.bench.loop import Inputs, Loop
from edgemem.bundle import Bundle
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import NonFiniteError

FEATURES = Contract((InputSpec("features", (3,)),), (OutputSpec("predictions", (2,)),), (StateSpec("h", (2,)),))


def test_the_inputs_are_those_of_run(tokens: Bundle) -> None:
    inputs = Inputs(tokens.contract)
    logits = np.full((1, 16), -np.inf, dtype=np.float32)
    logits[0, 7] = 0.0
    assert inputs.after(logits) == 7
    assert type(inputs.first()) is int
    assert inputs.sequence(600).shape == (600,)
    features = Inputs(FEATURES)
    assert features.first().shape == features.after(np.zeros((1, 2))).shape == (3,)
    assert features.sequence(600).shape == (600, 3)
    assert features.sequence(5).dtype == np.float32


def test_the_same_inputs_come_every_time() -> None:
    assert (Inputs(FEATURES).sequence(300) == Inputs(FEATURES).sequence(300)).all()


def test_a_model_that_puts_out_nan_is_not_measured(broken: Bundle) -> None:
    with edgemem.open(broken.path, threads=1) as session:
        loop = Loop(session.stream(), session.contract)
        loop.check()
        loop.step()
        with pytest.raises(NonFiniteError, match="position 1 the model outputs NaN"):
            loop.check()
