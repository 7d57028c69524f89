"""What TensorRT-RTX compiled at one start is there at the next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemem.bundle import Bundle
from tests.runtimes import tiny
from tests.runtimes.trt.machine import Machine, machine


@pytest.fixture
def device() -> Iterator[Machine]:
    with machine("tensorrt-rtx") as here:
        yield here


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return tiny.save_bundle(tmp_path / "tokens", tiny.TOKENS, tiny.tokens_model())


def start(device: Machine, bundle: Bundle) -> int:
    """Open, step, chunk and close; how often something was compiled."""
    before = device.tensorrt.compilations
    with device.open(bundle) as session:
        stream = session.stream()
        stream.step(1)
        stream.feed([1, 2, 3])
    return device.tensorrt.compilations - before


def kept() -> list[Path]:
    return list(Path(os.environ["XDG_CACHE_HOME"]).glob("edgemem/engines/*.kernels"))


def test_a_second_start_compiles_nothing(device, bundle):
    assert start(device, bundle) == 1
    written = kept()[0].stat().st_mtime_ns
    assert start(device, bundle) == 0
    assert [file.stat().st_mtime_ns for file in kept()] == [written]  # nor is the file written again


def test_another_bundle_has_kernels_of_its_own(device, bundle, tmp_path):
    start(device, bundle)
    other = tiny.save_bundle(tmp_path / "other", tiny.FEATURES, tiny.features_model())
    with device.open(other) as session:
        session.stream().step([1.0] * tiny.FEATURES.input.shape[0])
    assert len(kept()) == 2


def test_a_new_driver_compiles_anew_and_keeps_that(device, bundle):
    start(device, bundle)
    device.tensorrt.driver = "590.2"
    assert start(device, bundle) == 1
    assert start(device, bundle) == 0


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: b"?"]
)
def test_a_damaged_file_never_reaches_the_engine(device, bundle, damage):
    start(device, bundle)
    (file,) = kept()
    file.write_bytes(damage(file.read_bytes()))
    assert start(device, bundle) == 1
    assert start(device, bundle) == 0


def test_a_cache_that_cannot_be_written_is_said_and_hurts_nobody(device, bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said: list[str] = []
    with device.open(bundle, announce=said.append) as session:
        session.stream().step(1)
    assert any("not cached" in line for line in said)


def test_a_session_that_made_no_stream_writes_nothing(device, bundle):
    device.open(bundle).close()
    assert kept() == []


def test_classic_tensorrt_has_no_such_cache(bundle):
    with machine("tensorrt") as device:
        assert start(device, bundle) == 0
        assert kept() == []
