"""Files of version 1, written by the code of that time, still open and compute what they computed then.

``tests/data/version1`` holds two bundles, the fingerprint, the inputs and outputs of each, a snapshot of each taken at
position 13 of two streams, a recipe, and the sidecar of an engine.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgemem
from edgemem.bundle import MANIFEST, PACKED, RECIPE, Manifest, open_bundle
from edgemem.errors import BundleError, EdgememError
from edgemem.runtimes.trt import sidecar
from edgemem.runtimes.trt.options import BuildOptions
from edgemem.runtimes.trt.pack import Recipe, is_pack, read_recipe

DATA = Path(__file__).parent / "data" / "version1"
TAKEN_AT = 13
TOLERANCE = {"tokens": 1e-5, "features": 1e-2}
"""Of outputs: the features bundle computes in float16."""


@pytest.fixture(params=sorted(TOLERANCE))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_bundle_keeps_its_fingerprint(name: str) -> None:
    bundle = open_bundle(DATA / name)
    assert bundle.fingerprint == (DATA / f"{name}.fingerprint").read_text().strip()
    assert bundle.digest is None


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


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed folder: the recipe beside the bundle that it was packed with."""
    folder = tmp_path / "packed"
    shutil.copytree(DATA / "tokens", folder / PACKED)
    shutil.copyfile(DATA / RECIPE, folder / RECIPE)
    return folder


def test_a_packed_folder_opens(packed: Path) -> None:
    assert is_pack(packed)
    recipe = read_recipe(packed)
    assert recipe == Recipe("orin-nano", BuildOptions(workspace_bytes=536870912))
    fingerprint = json.loads((packed / RECIPE).read_text())["fingerprint"]
    assert open_bundle(packed / PACKED).fingerprint == fingerprint


def test_the_sidecar_of_an_engine_is_read() -> None:
    path = DATA / "model.engine.json"
    read = sidecar.Sidecar.load(path)
    assert json.loads(json.dumps(read.to_json())) == json.loads(path.read_text())
    bundle = open_bundle(DATA / "tokens")
    assert read.contract == bundle.contract.fingerprint
    assert read.sources == sidecar.sources(bundle, bundle.manifest.graphs[0])


def test_a_bundle_with_a_contract_of_version_3_is_refused_by_its_name(packed: Path) -> None:
    path = packed / PACKED / MANIFEST
    data = json.loads(path.read_text())
    data["contract"]["version"] = 3
    path.write_text(json.dumps(data))
    words = f"{path}: contract is an edgemem contract of version 3, this edgemem reads versions 1 and 2."
    with pytest.raises(BundleError, match=re.escape(words)) as refusal:
        open_bundle(packed / PACKED)
    assert "export the model again" in (refusal.value.hint or "")


@pytest.mark.parametrize(
    ("path", "value"), [(("states", 0, "bytes"), 1), (("max_chunk",), 99), (("states", 0, "name"), None)]
)
def test_a_bundle_that_contradicts_itself_is_refused_by_its_name(
    packed: Path, path: tuple[Any, ...], value: Any
) -> None:
    file = packed / PACKED / MANIFEST
    data = json.loads(file.read_text())
    place = data["contract"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=re.escape(f"{file}: contract")) as refusal:
        open_bundle(packed / PACKED)
    assert refusal.value.hint


@pytest.mark.parametrize("name", [f"{PACKED}/{MANIFEST}", RECIPE, "model.engine.json"])
def test_a_file_of_version_9_is_refused_by_its_name(packed: Path, name: str) -> None:
    shutil.copyfile(DATA / "model.engine.json", packed / "model.engine.json")
    data = json.loads((packed / name).read_text())
    key = "format_version" if "format_version" in data else "version"
    (packed / name).write_text(json.dumps(data | {key: 9}))
    read: dict[str, Callable[[], object]] = {
        RECIPE: lambda: read_recipe(packed),
        "model.engine.json": lambda: sidecar.Sidecar.load(packed / name),
    }
    with pytest.raises(EdgememError, match=r"of version 9, this edgemem reads versions? 1") as refusal:
        read.get(name, lambda: open_bundle(packed / PACKED))()
    assert str(packed / name) in refusal.value.message
    assert re.search("Install (edgemem|the edgemem).* wrote it, or .*: edgemem", refusal.value.hint or "")
