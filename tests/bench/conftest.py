"""Small bundles, each written once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import edgemem.export
from edgemem.bundle import Bundle
from tests.bench.tiny import UNTIED, Kind, write_tiny


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of a module of the user's own: nothing can be built from its manifest."""
    return write_tiny(tmp_path_factory.mktemp("bench") / "tokens")


@pytest.fixture(scope="session")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_tiny(tmp_path_factory.mktemp("bench") / "growing", "growing")


@pytest.fixture(scope="session")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose logits are NaN."""
    return write_tiny(tmp_path_factory.mktemp("bench") / "broken", bias=float("nan"))


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle with a decoder's configuration, whose twins are written by hand."""

    def twin(kind: Kind) -> Callable[[Bundle, Path], Path]:
        return lambda bundle, out: write_tiny(out, kind).path

    monkeypatch.setattr(edgemem.export, "growing_twin", twin("growing"), raising=False)
    return write_tiny(tmp_path / "decoder", model=UNTIED)
