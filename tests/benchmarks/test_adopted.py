"""The loops by hand that adopted models are compared with compute what edgemem computes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click
import numpy as np
import pytest

import edgemem
from edgemem.adopt import adopt
from edgemem.bench.measure import silent

from .conftest import loaded

# GTCRN's windows are multiplied in another order; DTLN's transforms are products with matrices.
TOLERANCES = {"GTCRN": 1e-7, "DTLN, both stages": 1e-5}


@pytest.fixture(scope="module")
def adopted(figures: ModuleType) -> ModuleType:
    return loaded("adopted")


def test_a_ratio_is_reached_where_the_upper_end_of_its_interval_is(adopted: ModuleType) -> None:
    for high, is_reached in ((1.01, True), (0.99, False), (None, False)):
        made = adopted.statistics.Interval(0.98, 0.9, high, 0.95, 41)
        assert adopted.Reachable("step", "a step", 0.98, "×", 1.0, True, made, "").reached is is_reached


@pytest.mark.long
def test_the_loops_by_hand_give_what_a_step_gives(adopted: ModuleType, tmp_path: Path) -> None:
    """Downloads the models."""
    try:
        models = list(adopted.models())
    except click.ClickException as error:
        pytest.skip(error.message)
    for model in models:
        bundle = adopt(model.path, tmp_path / model.title, model.options)
        chunks = np.random.default_rng(1).normal(0, 0.1, (300, *model.shape)).astype(np.float32)
        with edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1) as session:
            stream = session.stream(held=model.held)
            for chunk in chunks:
                wanted = np.ravel(model.loop(chunk[np.newaxis] if model.batched else chunk))
                made = stream.step(chunk)
                found = np.ravel(made[session.contract.output.name] if isinstance(made, dict) else made)
                if model.title in TOLERANCES:
                    np.testing.assert_allclose(found, wanted, atol=TOLERANCES[model.title])
                else:
                    np.testing.assert_array_equal(found, wanted)


@pytest.mark.long
def test_every_figure_is_measured(adopted: ModuleType, tmp_path: Path) -> None:
    try:
        model = next(adopted.models())
    except click.ClickException as error:
        pytest.skip(error.message)
    figures = [adopted.one_step(model, tmp_path, 2, silent), *adopted.batched(tmp_path, 2, silent)]
    assert [figure.target for figure in figures] == [1.0, 2.0, 2.0, 1.0]
    assert all(figure.value > 0 for figure in figures)
