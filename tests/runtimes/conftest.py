from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import edgemem
from edgemem.bundle import Bundle
from edgemem.runtimes import Session
from tests.runtimes import tiny


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="session")
def tokens_bundle(folder: Path) -> Bundle:
    return tiny.save_bundle(folder / "tokens", tiny.TOKENS, tiny.tokens_model())


@pytest.fixture(scope="session")
def features_bundle(folder: Path) -> Bundle:
    return tiny.save_bundle(folder / "features", tiny.FEATURES, tiny.features_model())


@pytest.fixture(scope="session")
def growing_bundle(folder: Path) -> Bundle:
    return tiny.save_bundle(folder / "growing", tiny.GROWING, tiny.growing_model())


@pytest.fixture(scope="session")
def session(tokens_bundle: Bundle) -> Iterator[Session]:
    with edgemem.open(tokens_bundle.path, threads=1, device="cpu") as session:
        yield session


@pytest.fixture(scope="session")
def guarded(features_bundle: Bundle) -> Iterator[Session]:
    with edgemem.open(features_bundle.path, threads=1, device="cpu", guard=True) as session:
        yield session


@pytest.fixture(scope="session")
def exported(folder: Path) -> Callable[[str], Bundle]:
    """The bundle of a case of :mod:`tests.runtimes.decoders`, exported where it is first asked for."""
    pytest.importorskip("torch")
    from tests.runtimes import decoders

    made: dict[str, Bundle] = {}

    def get(name: str) -> Bundle:
        if name not in made:
            made[name] = decoders.exported(decoders.CASES[name], folder / "decoders")
        return made[name]

    return get
