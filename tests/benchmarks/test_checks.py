"""The cost of the checks and of saving is measured on any bundle of 64 real values."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import edgemem
from edgemem.bench.measure import silent
from edgemem.bundle import Bundle, open_bundle
from tests.handmade import write_summer

from .conftest import loaded


@pytest.fixture(scope="module")
def checks(figures: ModuleType) -> ModuleType:
    return loaded("checks")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_summer(tmp_path_factory.mktemp("checks") / "summer", 64))


def test_every_figure_is_measured(checks: ModuleType, bundle: Bundle, tmp_path: Path) -> None:
    alone = checks.alone(bundle, "hold", 7, 200, silent)
    step = checks.whole_step(bundle, 7, silent)
    saves = checks.saving(bundle, tmp_path, 7, silent)
    assert 0 < alone.value < 50  # a loose bound: the figure itself is printed, not tested
    assert 0.1 < step.value < 10
    assert 0 < saves.value < 1
    assert all(figure.interval.low is not None for figure in (alone, step, saves))


def test_without_the_checks_a_row_that_is_not_finite_goes_through(checks: ModuleType, bundle: Bundle) -> None:
    with edgemem.open(bundle.path, threads=1) as session:
        stream = session.stream(on_nan="pass")
        row = np.full(64, np.nan, np.float32)
        assert np.isnan(checks.unchecked(stream)(row)).all()
        assert stream.position == 1
