"""A bundle is opened only when it is ours, complete and unchanged; it is written whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgemem.bundle import (
    MANIFEST,
    WEIGHTS,
    Bundle,
    GraphFile,
    Manifest,
    is_bundle,
    open_bundle,
    package_versions,
    write_bundle,
)
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import BundleError, EdgememError
from edgemem.generation_defaults import GenerationDefaults
from edgemem.manifest import MANIFEST_FORMAT, LoadOptions, SourceInfo
from edgemem.precision import Precision

CONTRACT = Contract(
    (InputSpec("tokens", (), "int64", 5),),
    (OutputSpec("logits", (5,)),),
    (StateSpec("0.window.k", (1, 8, 2), update="append"),),
    max_chunk=8,
)
MODEL = DecoderConfig(d_model=8, layers=1, heads=1, vocab_size=5, memory=[{"type": "window", "window": 8}])
# The graphs are protocol buffers that hold a producer's name.
FILES = {
    "step.onnx": b"\x12\x04step",
    "chunk.onnx": b"\x12\x05chunk",
    WEIGHTS: b"weights" * 100,
    "tokenizer.json": b"{}",
}


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "contract": CONTRACT,
        "graphs": (GraphFile("step.onnx", 1, 1), GraphFile("chunk.onnx", 1, 8)),
        "source": SourceInfo("checkpoint", "été", options=LoadOptions("sinks=4,window=8"), stored_dtype="bfloat16"),
        "model": MODEL,
        "tokenizer": "tokenizer.json",
        "input_meaning": "bytes",
        "versions": {"edgemem": "0"},
        "verification": {"steps": 3},
    }
    return Manifest(**{**fields, **changes})


def write(path: Path, files: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    with write_bundle(path) as writer:
        for name, content in (FILES if files is None else files).items():
            (writer.folder / name).write_bytes(content)
        writer.finish(manifest(**changes))
    return open_bundle(path)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write(tmp_path / "bundle")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(bundle: Bundle, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((bundle.path / MANIFEST).read_text())
    change(data)
    (bundle.path / MANIFEST).write_bytes(MANIFEST_FORMAT.encode(data))


# What is written is read


def test_a_bundle_is_read_as_it_was_written(bundle: Bundle) -> None:
    found = bundle.manifest
    assert replace(found, files={}, created="") == manifest()
    assert {name: size for name, (_, size) in found.files.items()} == {name: len(data) for name, data in FILES.items()}
    assert found.created.endswith("+00:00")
    assert bundle.contract == CONTRACT
    assert bundle.weights_bytes == 700
    assert bundle.file(WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_manifest_survives_json(bundle: Bundle) -> None:
    assert Manifest.from_json(json.loads(json.dumps(bundle.manifest.to_json()))) == bundle.manifest


def test_the_narrowest_graph_that_takes_a_number_of_steps_is_chosen(bundle: Bundle) -> None:
    chosen = {time: bundle.graph_for(time) for time in (1, 2, 8, 9)}
    assert chosen == {
        1: GraphFile("step.onnx", 1, 1),
        2: GraphFile("chunk.onnx", 1, 8),
        8: GraphFile("chunk.onnx", 1, 8),
        9: None,
    }
    assert bundle.max_time == 8


def test_a_file_that_the_manifest_does_not_list_is_not_handed_out(bundle: Bundle) -> None:
    (bundle.path / "extra").write_text("x")
    with pytest.raises(BundleError, match="extra"):
        bundle.file("extra")


def test_versions_are_of_installed_packages_only() -> None:
    versions = package_versions("numpy", "no-such-package-anywhere")
    assert {"python", "numpy"} <= set(versions)
    assert "no-such-package-anywhere" not in versions


# Fingerprints


def test_the_fingerprint_is_of_the_model_and_not_of_the_day_or_the_folder(tmp_path: Path, bundle: Bundle) -> None:
    again = write(
        tmp_path / "again", created="1999-01-01T00:00:00+00:00", verification={"steps": 9}, source=SourceInfo()
    )
    assert again.fingerprint == bundle.fingerprint
    assert len(bundle.fingerprint) == 64


@pytest.mark.parametrize("name", FILES)
def test_the_fingerprint_changes_with_every_file(tmp_path: Path, bundle: Bundle, name: str) -> None:
    other = write(tmp_path / "other", files={**FILES, name: FILES[name][:-1] + b"?"})
    assert other.fingerprint != bundle.fingerprint


def test_the_fingerprint_changes_with_the_contract(bundle: Bundle) -> None:
    other = replace(bundle.manifest, contract=replace(CONTRACT, output_indices=True))
    assert other.fingerprint != bundle.fingerprint


# What is not a bundle


def test_a_place_with_no_bundle_is_named_with_the_way_to_make_one(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    for name, what in (("nowhere", "does not exist"), ("folder", "has no manifest"), ("file", "is a file")):
        with pytest.raises(BundleError, match=what) as refusal:
            open_bundle(tmp_path / name)
        assert "edgemem export" in (refusal.value.hint or "")
        assert not is_bundle(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"format": "other"}'])
def test_a_manifest_that_is_not_ours_is_refused(bundle: Bundle, content: bytes) -> None:
    (bundle.path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=MANIFEST):
        open_bundle(bundle.path)
    assert not is_bundle(bundle.path)


def test_a_manifest_that_is_a_folder_is_refused(bundle: Bundle) -> None:
    (bundle.path / MANIFEST).unlink()
    (bundle.path / MANIFEST).mkdir()
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("version", [0, 4, "1", None, True, [1]])
def test_a_bundle_of_another_version_is_refused(bundle: Bundle, version: Any) -> None:
    edit(bundle, lambda data: data.update(version=version))
    with pytest.raises(
        BundleError, match=re.escape(f"version {version!r}, this edgemem reads versions 1, 2 and 3")
    ) as refusal:
        open_bundle(bundle.path)
    assert str(bundle.path / MANIFEST) in refusal.value.message
    assert "Install edgemem 0, which wrote it" in (refusal.value.hint or "")


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "contract of another kind": lambda data: data["contract"].update(format="x"),
    "contract that contradicts itself": lambda data: data["contract"]["states"][0].update(bytes=1),
    "graphs that are no list": lambda data: data.update(graphs=3),
    "no graph at all": lambda data: data.update(graphs=[]),
    "no graph for one step": lambda data: data.update(graphs=[{"file": "chunk.onnx", "time": [2, 8]}]),
    "a graph without times": lambda data: data["graphs"][0].pop("time"),
    "a graph with one time": lambda data: data["graphs"][0].update(time=[1]),
    "a graph that is no file": lambda data: data["graphs"][0].update(file=["step.onnx"]),
    "a graph that is not listed": lambda data: data["graphs"][0].update(file="other.onnx"),
    "files that are a list": lambda data: data.update(files=[]),
    "a file without a size": lambda data: data["files"][WEIGHTS].pop("bytes"),
    "a size that is no number": lambda data: data["files"][WEIGHTS].update(bytes="many"),
    "a graph of less than one step": lambda data: data["graphs"][0].update(time=[0, 1]),
    "a graph of text steps": lambda data: data["graphs"][0].update(time=["1", "8"]),
    "a size below 0": lambda data: data["files"][WEIGHTS].update(bytes=-1),
    "a source that is a number": lambda data: data.update(source=3),
    "a source without a name": lambda data: data["source"].update(name=None),
    "an option of loading that is a number": lambda data: data["source"]["options"].update(memory=3),
    "a length that is true": lambda data: data["source"]["options"].update(max_length=True),
    "a model that is a list": lambda data: data.update(model=[]),
    "a model without a format": lambda data: data.update(model={"layers": 2}),
    "a model of many layers": lambda data: data["model"].update(layers="many"),
    "a precision of another dtype": lambda data: data["precision"].update(dtype="float8"),
    "verification that is a list": lambda data: data.update(verification=[]),
    "versions that are numbers": lambda data: data.update(versions={"edgemem": 1}),
    "special tokens that are a list": lambda data: data.update(special_tokens=["<s>"]),
    "generation that is a list": lambda data: data.update(generation=[]),
    "a temperature below 0": lambda data: data.update(generation={"temperature": -1}),
    "a setting of generation that is unknown": lambda data: data.update(generation={"heat": 1}),
}


@pytest.mark.parametrize(
    "place", [(), ("source",), ("source", "options"), ("graphs", 0), ("files", WEIGHTS), ("precision",), ("contract",)]
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_name_that_is_not_known_is_refused_wherever_it_is(
    bundle: Bundle, place: tuple[Any, ...], version: int
) -> None:
    data = bundle.manifest.to_json() | {"version": version}
    here: Any = data
    for key in place:
        here = here[key]
    here["later"] = 1
    with pytest.raises(BundleError, match="later"):
        Manifest.from_json(data)


YOUNGER = {"special_tokens", "generation", "precision"}  # than the first bundles


@pytest.mark.parametrize("key", sorted(set(manifest().to_json()) - {"format", "version"} - YOUNGER))
def test_a_manifest_that_lacks_a_part_is_refused_by_its_name(bundle: Bundle, key: str) -> None:
    edit(bundle, lambda data: data.pop(key))
    with pytest.raises(BundleError, match=key):
        open_bundle(bundle.path)


def test_a_bundle_from_before_chat_templates_still_opens(bundle: Bundle) -> None:
    edit(bundle, lambda data: [data.pop(key) for key in YOUNGER])
    opened = open_bundle(bundle.path).manifest
    assert (opened.special_tokens, opened.generation, opened.precision) == ({}, GenerationDefaults(), Precision())


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_manifest_is_refused(bundle: Bundle, what: str) -> None:
    edit(bundle, MALFORMED[what])
    with pytest.raises(BundleError) as refusal:
        open_bundle(bundle.path)
    assert str(bundle.path) in refusal.value.message
    assert refusal.value.hint or "lists no file" in refusal.value.message


# What was changed on the way


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("verify", [True, False])
def test_a_file_cut_short_is_named_with_both_sizes(bundle: Bundle, verify: bool) -> None:
    (bundle.path / WEIGHTS).write_bytes(FILES[WEIGHTS][:-1])
    with pytest.raises(BundleError, match=f"{WEIGHTS} has 699 bytes, but the manifest lists 700"):
        open_bundle(bundle.path, verify=verify)


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_found(bundle: Bundle, name: str) -> None:
    (bundle.path / name).write_bytes(FILES[name][:-1] + b"?")
    with pytest.raises(BundleError, match=f"SHA-256 of {name} differs"):
        open_bundle(bundle.path)
    open_bundle(bundle.path, verify=False)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "nul\0byte", "link"])
def test_a_manifest_cannot_name_a_file_outside_its_folder(bundle: Bundle, name: str) -> None:
    outside = bundle.path.parent / "outside"
    outside.write_bytes(b"x")
    (bundle.path / "link").symlink_to(outside)
    edit(bundle, lambda data: data["files"].update({name: {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BundleError, match="leaves its folder"):
        open_bundle(bundle.path)


def test_no_bit_of_a_manifest_flips_unnoticed(bundle: Bundle) -> None:
    path = bundle.path / MANIFEST
    content = path.read_bytes()
    accepted = []
    for place in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        try:
            MANIFEST_FORMAT.read(bytes(flipped), MANIFEST)
        except BundleError:
            continue
        accepted.append(place)
    assert accepted == []
    assert MANIFEST_FORMAT.read(content, MANIFEST).digest == bundle.digest


@pytest.mark.parametrize("change", [lambda text: text.replace('"bytes"', '"Bytes"'), lambda text: text + " "])
def test_a_manifest_that_was_edited_is_refused_with_the_way_out(bundle: Bundle, change: Callable[[str], str]) -> None:
    path = bundle.path / MANIFEST
    path.write_text(change(path.read_text()))
    with pytest.raises(BundleError, match="was changed after it was written") as refusal:
        open_bundle(bundle.path)
    assert "edgemem export" in (refusal.value.hint or "")


def test_a_digest_that_is_missing_is_not_passed_over(bundle: Bundle) -> None:
    for digest in (None, "", 3, "é"):
        data = {"format": "edgemem.bundle", "version": 3, "digest": digest, **bundle.manifest.to_json()}
        (bundle.path / MANIFEST).write_text(json.dumps(data))
        with pytest.raises(BundleError, match="its own digest"):
            open_bundle(bundle.path)


def test_a_graph_may_only_refer_to_files_that_the_manifest_lists(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="side.bin")
    graph = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor])).SerializeToString()
    files = {**FILES, "chunk.onnx": graph}
    with pytest.raises(BundleError, match=r"chunk.onnx refers to 'side.bin', which the manifest does not list"):
        write(tmp_path / "bundle", files)
    write(tmp_path / "bundle", {**files, "side.bin": b"12345678"})


@pytest.mark.parametrize("name", [MANIFEST, *FILES])
def test_a_fifo_or_a_device_in_place_of_a_file_is_refused_at_once(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    os.mkfifo(bundle.path / name)
    with pytest.raises(BundleError, match=f"{name}.* is (not a file|a FIFO)"):
        open_bundle(bundle.path)


def test_a_file_that_takes_for_ever_to_hash_is_refused_at_once(bundle: Bundle) -> None:
    os.truncate(bundle.path / WEIGHTS, 1 << 40)
    edit(bundle, lambda data: data["files"][WEIGHTS].update(bytes=1 << 40))
    with pytest.raises(BundleError, match=r"1,099,511,627,776 bytes, at most 68,719,476,736 are allowed"):
        open_bundle(bundle.path)


def test_the_manifest_itself_lies_in_the_folder(bundle: Bundle) -> None:
    (bundle.path / MANIFEST).rename(bundle.path.parent / "outside")
    (bundle.path / MANIFEST).symlink_to(bundle.path.parent / "outside")
    with pytest.raises(BundleError, match="leaves its folder"):
        open_bundle(bundle.path)


# Writing


def test_a_new_bundle_takes_the_place_of_the_old_one(bundle: Bundle) -> None:
    write(bundle.path, files={**FILES, WEIGHTS: b"new"})
    assert (bundle.path / WEIGHTS).read_bytes() == b"new"
    assert [path.name for path in bundle.path.parent.iterdir()] == ["bundle"]


def test_a_damaged_bundle_may_be_written_again(bundle: Bundle) -> None:
    (bundle.path / WEIGHTS).unlink()
    write(bundle.path)


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")


@pytest.mark.parametrize("content", [{"notes.txt": b"mine"}, {MANIFEST: b'{"name": "a web app"}'}, {MANIFEST: b"{"}])
def test_a_folder_that_is_something_else_is_left_as_it_is(tmp_path: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(BundleError, match="not an edgemem bundle"), write_bundle(tmp_path):
        pass
    assert contents(tmp_path) == content


def test_a_file_in_the_way_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EdgememError, match="file"), write_bundle(target):
            pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("error", [RuntimeError("mine"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_export_that_fails_leaves_the_old_bundle(bundle: Bundle, error: BaseException) -> None:
    before = contents(bundle.path)

    def fail() -> None:
        with write_bundle(bundle.path) as writer:
            (writer.folder / WEIGHTS).write_bytes(b"half")
            raise error

    with pytest.raises(EdgememError if isinstance(error, OSError) else type(error)):
        fail()
    assert contents(bundle.path) == before
    assert [path.name for path in bundle.path.parent.iterdir()] == ["bundle"]


def test_a_bundle_that_was_not_finished_is_not_put_in_place(bundle: Bundle) -> None:
    before = contents(bundle.path)
    with pytest.raises(EdgememError, match="not finished"), write_bundle(bundle.path) as writer:
        (writer.folder / WEIGHTS).write_bytes(b"half")
    assert contents(bundle.path) == before
