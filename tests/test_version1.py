"""Files of version 1, written by the code of that time, still open and compute what they computed then.

``tests/data/version1`` holds two bundles, the fingerprint, the inputs and outputs of each, a snapshot of each taken at
position 13 of two streams, a recipe, and the sidecar of an engine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.bundle import Manifest, open_bundle

DATA = Path(__file__).parent / "data" / "version1"
TAKEN_AT = 13
TOLERANCE = {"tokens": 1e-5, "features": 1e-2}
"""Of outputs: the features bundle computes in float16."""


@pytest.fixture(params=sorted(TOLERANCE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_bundle_keeps_its_fingerprint(name: str) -> None:
    assert open_bundle(DATA / name).fingerprint == (DATA / f"{name}.fingerprint").read_text().strip()


def test_a_manifest_is_written_as_it_was_read(name: str) -> None:
    fields = open_bundle(DATA / name).manifest
    again = Manifest.from_json(fields.to_json())
    assert again == fields
    assert again.fingerprint == (DATA / f"{name}.fingerprint").read_text().strip()


def test_a_bundle_computes_what_it_computed(name: str) -> None:
    recorded = np.load(DATA / f"{name}.npz")
    with edgemem.open(DATA / name, "onnxruntime", device="cpu") as session:
        stream = session.stream(batch=2)
        outputs = [stream.step(step).copy() for step in recorded["data"].swapaxes(0, 1)]
        np.testing.assert_allclose(np.stack(outputs, 1), recorded["outputs"], rtol=0, atol=TOLERANCE[name])
        stream.reset()
        fed = stream.feed(recorded["data"], "all")
        np.testing.assert_allclose(fed, recorded["outputs"], rtol=0, atol=TOLERANCE[name])


def test_a_snapshot_is_restored_and_continues(name: str) -> None:
    recorded = np.load(DATA / f"{name}.npz")
    with edgemem.open(DATA / name, "onnxruntime", device="cpu") as session:
        stream = session.stream(batch=2)
        stream.restore((DATA / f"{name}.edgemem").read_bytes())
        assert list(stream.positions) == [TAKEN_AT, TAKEN_AT]
        rest = [stream.step(step).copy() for step in recorded["data"][:, TAKEN_AT:].swapaxes(0, 1)]
        np.testing.assert_allclose(np.stack(rest, 1), recorded["rest"], rtol=0, atol=TOLERANCE[name])


def test_the_torch_runtime_rebuilds_the_decoder() -> None:
    recorded = np.load(DATA / "tokens.npz")
    with edgemem.open(DATA / "tokens", "torch") as session:
        stream = session.stream(batch=2)
        outputs = stream.feed(recorded["data"], "all")
        np.testing.assert_allclose(outputs, recorded["outputs"], rtol=0, atol=TOLERANCE["tokens"])
