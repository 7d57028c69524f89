"""A prefix is computed once: its state is kept by its hash, and what is restored is what was computed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.text.prefixes import Prefixes
from tests.handmade import write_reciter

TOKENS = np.frombuffer(b"the import statement, " * 30, np.uint8).astype(np.int64)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[edgemem.Session]:
    with edgemem.open(write_reciter(tmp_path_factory.mktemp("prefixes") / "reciter"), threads=1) as session:
        yield session


def test_a_restored_stream_is_bit_equal_to_one_that_computed_the_prefix(
    session: edgemem.Session, tmp_path: Path
) -> None:
    prefixes, states = Prefixes(session, tmp_path / "new" / "folder"), []
    for restored in (False, True):
        stream = session.stream()
        found = prefixes.read(stream, TOKENS)
        assert (found.tokens, found.restored, found.problem) == (len(TOKENS), restored, "")
        states.append(stream.snapshot())
    assert states[0] == states[1]
    alone = session.stream()
    alone.feed(TOKENS, "none")
    assert alone.snapshot() == states[0]
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [f"{prefixes.key(TOKENS)}.prefix"]


def test_a_stream_of_a_pool_reads_the_same_files(session: edgemem.Session, tmp_path: Path) -> None:
    prefixes = Prefixes(session, tmp_path)
    alone = session.stream()
    prefixes.read(alone, TOKENS)
    with session.pool(slots=2) as pool:
        stream = pool.open()
        assert prefixes.read(stream, TOKENS).restored
        assert stream.snapshot() == alone.snapshot()


def test_other_tokens_and_without_a_folder_everything_is_computed(session: edgemem.Session, tmp_path: Path) -> None:
    Prefixes(session, tmp_path).read(session.stream(), TOKENS)
    assert not Prefixes(session, tmp_path).read(session.stream(), TOKENS[:-1]).restored
    for _ in range(2):
        assert not Prefixes(session).read(session.stream(), TOKENS).restored


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_file_that_is_not_what_it_was_is_computed_again(
    session: edgemem.Session, tmp_path: Path, damage: str
) -> None:
    prefixes = Prefixes(session, tmp_path)
    prefixes.read(session.stream(), TOKENS)
    (file,) = tmp_path.iterdir()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:  # the state of other tokens under this name
        other = session.stream()
        other.feed([1], "none")
        other.save(file)
    stream = session.stream()
    found = prefixes.read(stream, TOKENS)
    assert not found.restored
    assert str(file) in found.problem
    assert stream.position == len(TOKENS)
    assert prefixes.read(session.stream(), TOKENS).restored


def test_a_reading_that_is_stopped_leaves_the_stream_at_its_start(session: edgemem.Session, tmp_path: Path) -> None:
    looks = iter([False, True])
    stream = session.stream()
    found = Prefixes(session, tmp_path).read(stream, TOKENS, lambda: next(looks))
    assert found.tokens == stream.position == 0
    assert list(tmp_path.iterdir()) == []


def test_the_least_recently_used_make_room(session: edgemem.Session, tmp_path: Path) -> None:
    size = len(session.stream().snapshot("0" * 64))
    prefixes = Prefixes(session, tmp_path, most_bytes=3 * size)
    for number, tokens in enumerate((TOKENS[:5], TOKENS[:6], TOKENS[:7])):
        prefixes.read(session.stream(), tokens)
        file = tmp_path / f"{prefixes.key(tokens)}.prefix"
        os.utime(file, (number, number))
    assert prefixes.read(session.stream(), TOKENS[:5]).restored  # now the second is the oldest
    prefixes.read(session.stream(), TOKENS[:8])
    kept = [prefixes.read(session.stream(), TOKENS[:count]).restored for count in (5, 7, 8)]
    assert kept == [True] * 3
    assert not (tmp_path / f"{prefixes.key(TOKENS[:6])}.prefix").exists()


def test_a_state_that_cannot_be_kept_is_a_problem_and_not_an_error(session: edgemem.Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = Prefixes(session, tmp_path / "file").read(session.stream(), TOKENS)
    assert found.tokens == len(TOKENS)
    assert "was not kept" in found.problem
