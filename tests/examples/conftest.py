"""The examples are scripts: their folder comes first on the path, as when Python runs one of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture
def in_examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the folder of the examples."""
    monkeypatch.chdir(EXAMPLES)
    return EXAMPLES
