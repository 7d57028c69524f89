"""A restored stream goes on bit for bit; a snapshot that does not fit is refused and changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

import edgemem
from edgemem.bundle import Bundle
from edgemem.errors import EdgememError, SnapshotError
from edgemem.runtimes import Session
from edgemem.runtimes.snapshot import FORMAT, _digest
from tests.runtimes import tiny


def facts_of(snapshot: bytes) -> dict[str, str]:
    header = json.loads(snapshot[8 : 8 + int.from_bytes(snapshot[:8], "little")])
    return dict(json.loads(header["__metadata__"][FORMAT]))


def with_facts(snapshot: bytes, **changes: str) -> bytes:
    return save(load(snapshot), metadata={FORMAT: json.dumps({**facts_of(snapshot), **changes})})


@given(steps=st.integers(0, 15), batch=st.integers(1, 3), after=st.integers(1, 6), data=st.data())
@settings(max_examples=25, deadline=None)
def test_the_next_steps_are_bit_equal(
    session: Session, steps: int, batch: int, after: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    stream, other = session.stream(batch), session.stream(batch)
    if steps:
        stream.feed(rng.integers(0, tiny.VOCAB, (batch, steps)))
        stream.reset(data.draw(st.lists(st.integers(0, batch - 1), max_size=2)))
        other.feed(rng.integers(0, tiny.VOCAB, (batch, data.draw(st.integers(1, 9)))))
    other.restore(stream.snapshot())
    assert other.snapshot() == stream.snapshot()
    for tokens in rng.integers(0, tiny.VOCAB, (after, batch)):
        np.testing.assert_array_equal(stream.step(tokens), other.step(tokens))
    chunk = rng.integers(0, tiny.VOCAB, (batch, after))
    np.testing.assert_array_equal(stream.feed(chunk, "all"), other.feed(chunk, "all"))


def test_it_goes_through_a_file_and_brings_its_note(session: Session, tmp_path: Path) -> None:
    stream, other = session.stream(), session.stream()
    stream.feed([1, 2, 3, 4, 5])
    stream.save(tmp_path / "stream.state", note="next: 6")
    assert other.restore(tmp_path / "stream.state") == "next: 6"
    assert other.restore(str(tmp_path / "stream.state")) == "next: 6"
    np.testing.assert_array_equal(stream.step(6), other.step(6))


def test_another_process_restores_it(session: Session, tokens_bundle: Bundle, tmp_path: Path) -> None:
    import subprocess
    import sys

    stream = session.stream()
    stream.feed([1, 2, 3, 4, 5])
    stream.save(tmp_path / "s")
    code = (
        "import edgemem, sys; s = edgemem.open(sys.argv[1], threads=1, device='cpu').stream(); s.restore(sys.argv[2]);"
        "print(s.step(6).tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tokens_bundle.path), str(tmp_path / "s")], capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == stream.step(6).tobytes().hex()


def refused(session: Session, snapshot: Any, message: str, batch: int = 1) -> None:
    stream = session.stream(batch)
    stream.step([3] * batch)
    before = stream.snapshot()
    with pytest.raises(SnapshotError, match=message):
        stream.restore(snapshot)
    assert stream.snapshot() == before


def test_one_of_another_model_is_refused(session: Session, folder: Path) -> None:
    contract = replace(tiny.TOKENS, max_chunk=2)
    bundle = tiny.save_bundle(folder / "other", contract, tiny.tokens_model(contract))
    with edgemem.open(bundle.path, threads=1, device="cpu") as other:
        refused(session, other.stream().snapshot(), "of another model")


def test_one_of_another_version_is_refused(session: Session) -> None:
    snapshot = with_facts(session.stream().snapshot(), version="3", edgemem="9.9")
    refused(session, snapshot, "version '3', this edgemem reads versions 1 and 2.\nInstall edgemem 9.9, which wrote it")


def test_one_of_another_batch_is_refused(session: Session) -> None:
    refused(session, session.stream(3).snapshot(), r"holds 3 streams, this stream has batch 1.\n.*stream\(batch=3\)")
    refused(session, session.stream(1).snapshot(), "holds 1 stream, this stream has batch 2", batch=2)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.9, 0.999])
def test_one_cut_short_is_refused(session: Session, part: float, tmp_path: Path) -> None:
    snapshot = session.stream().snapshot()
    short = snapshot[: int(len(snapshot) * part)]
    refused(session, short, "cut short")
    (tmp_path / "short").write_bytes(short)
    refused(session, tmp_path / "short", "cut short")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_one_with_any_byte_changed_is_refused(session: Session, data: st.DataObject) -> None:
    stream = session.stream()
    stream.feed([1, 2, 3])
    snapshot = bytearray(stream.snapshot(note="text"))
    index = data.draw(st.integers(0, len(snapshot) - 1))
    snapshot[index] ^= 1 << data.draw(st.integers(0, 7))
    other = session.stream()
    before = other.snapshot()
    try:
        other.restore(bytes(snapshot))
    except SnapshotError:
        assert other.snapshot() == before
    else:  # padding of the header carries nothing
        assert other.snapshot() == stream.snapshot()


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (np.array(3), r"its positions have shape \[\]"),
        (np.array([[3]]), r"its positions have shape \[1, 1\]"),
        (np.array([1 << 63], np.uint64), "positions must be from 0 to"),
        (np.array([-1]), "positions must be from 0 to"),
        (np.array([1.0]), "positions of dtype float64"),
    ],
)
def test_one_with_hostile_positions_is_refused(session: Session, positions: np.ndarray, words: str) -> None:
    snapshot = session.stream().snapshot()
    tensors, facts = {**load(snapshot), "position": positions}, facts_of(snapshot)
    facts.pop("sha256")
    facts["sha256"] = _digest(facts, tensors)
    refused(session, save(tensors, metadata={FORMAT: json.dumps(facts)}), words)


def test_one_whose_facts_were_changed_is_refused(session: Session) -> None:
    snapshot = session.stream().snapshot(note="a")
    refused(session, with_facts(snapshot, note="b"), "SHA-256")
    refused(session, with_facts(snapshot, fingerprint="0" * 64), "SHA-256")


@pytest.mark.parametrize("data", [b"", b"not a snapshot at all", b"\xff" * 100, save({"a": np.zeros(3)})])
def test_other_files_are_refused(session: Session, data: bytes) -> None:
    refused(session, data, "not an edgemem snapshot")


def test_a_file_that_is_not_there_is_refused(session: Session, tmp_path: Path) -> None:
    refused(session, tmp_path / "none", "cannot be read: No such file")
    refused(session, tmp_path, "cannot be read: Is a directory")


def test_a_snapshot_that_cannot_be_written_leaves_the_old_one(session: Session, tmp_path: Path) -> None:
    with pytest.raises(EdgememError, match=r"cannot write .*none"):
        session.stream().save(tmp_path / "none" / "s")
    path = tmp_path / "s"
    session.stream().save(path)
    old = path.read_bytes()
    (tmp_path / "full").mkdir()
    with pytest.raises(EdgememError, match="cannot write"):
        session.stream().save(tmp_path / "full")  # a folder is there
    assert path.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["full", "s"]
