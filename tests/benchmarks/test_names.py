"""Scripts put their own folder first on Python's path: none may have the name of a package that others import."""

from __future__ import annotations

import sys
from importlib.metadata import packages_distributions

from tests.house import ROOT

NOT_EVERYWHERE = {"cuda", "tensorrt", "cupy", "triton"}
"""Packages that torch and others import where they are installed."""


def test_no_script_hides_a_package():
    taken = {*packages_distributions(), *sys.stdlib_module_names, *NOT_EVERYWHERE}
    names = {path.stem for folder in ("benchmarks", "examples") for path in (ROOT / folder).iterdir()}
    assert names & taken == set()
