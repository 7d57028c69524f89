"""Files are written whole or not at all, and names never leave their folder."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem import files
from edgemem.errors import BundleError, EdgememError
from edgemem.files import inside, read_file, replace_folder, sha256_file, write_atomic


def fail(number: int) -> Any:
    def failing(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return failing


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=20, deadline=None)
@given(data=st.binary(max_size=100) | st.integers(0, 3).map(lambda n: b"x" * ((1 << 20) * n + n)))
def test_the_hash_is_that_of_the_whole_file(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(data)
    assert sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_only_a_file_within_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_file(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, at most 4 are allowed"):
        read_file(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "fifo")
    for path, what in (
        (tmp_path / "fifo", "a FIFO"),
        (tmp_path, "a directory|a folder"),
        (Path("/dev/zero"), "a device"),
    ):
        with pytest.raises(OSError, match=f"(?i){what}"):
            read_file(path, 5)


# Names


@pytest.mark.parametrize("name", ["model.onnx", "a/b.bin", "..hidden", "a..b"])
def test_a_name_inside_its_folder_is_allowed(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize("name", ["x" * 300, "loop", "loop/x", "\ud800"])
def test_a_name_that_the_system_cannot_follow_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BundleError, match="cannot be used"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["..", "../x", "a/../../x", "a/..", "/etc/passwd", "//x", "nul\0byte"])
def test_a_name_that_climbs_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="leaves its folder"):
        inside(tmp_path, name)


def test_a_link_that_leads_out_is_refused_and_one_that_stays_is_not(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "real").write_text("y")
    (folder / "out").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    (folder / "in").symlink_to("real")
    for name in ("out", "up", "up/secret"):
        with pytest.raises(BundleError, match="leaves its folder"):
            inside(folder, name)
    assert inside(folder, "in").read_text() == "y"


# One file


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(tmp_path) == ["file"]


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield int(request.param)
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_new_files_and_folders_have_the_permissions_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    write_atomic(tmp_path / "file", b"")
    with replace_folder(tmp_path / "folder") as new:
        (new / "private").touch(0o600)
        write_atomic(new / "file", b"")
    assert [mode(path) for path in sorted(tmp_path.rglob("*file"))] == [0o666 & ~umask] * 2
    assert mode(tmp_path / "folder" / "private") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask


@pytest.mark.parametrize("kept", [0o600, 0o640, 0o666])
def test_an_existing_file_and_folder_keep_their_permissions(tmp_path: Path, old: Path, kept: int) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(kept)
    (old / "inner").chmod(kept)
    old.chmod(kept | 0o111)
    write_atomic(tmp_path / "file", b"new")
    with replace_folder(old) as new:
        write_atomic(new / "inner", b"new")
    assert (mode(tmp_path / "file"), mode(old / "inner"), mode(old)) == (kept, kept, kept | 0o111)


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"mine")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "broken").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    before = names_in(tmp_path)
    cases = {"link": "a link", "broken": "a link", "fifo": "a FIFO", ".": "a folder", "/dev/null": "a device"}
    for name, what in cases.items():
        with pytest.raises(EdgememError, match=f"cannot write .*: it is {what}, wanted a file"):
            write_atomic(tmp_path / name, b"new")
    assert names_in(tmp_path) == before
    assert (tmp_path / "target").read_bytes() == b"mine"


def test_a_name_that_no_file_can_have_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EdgememError, match=r"cannot write .*: File name too long"):
        files.check_replaceable(tmp_path / ("x" * 300))
    files.check_replaceable(tmp_path / "free")


def test_a_link_to_a_folder_stays_a_link_to_the_new_one(tmp_path: Path, old: Path) -> None:
    (tmp_path / "current").symlink_to(old)
    fill(tmp_path / "current")
    assert names_in(tmp_path) == ["current", "folder"]
    assert (tmp_path / "current").is_symlink()
    assert names_in(old) == ["sub"]


def test_everything_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, exchange = os.fsync, files._exchange

    def synced(handle: int) -> None:
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(files, "_exchange", lambda *paths: calls.append("exchange") or exchange(*paths))
    with replace_folder(old) as new:
        (new / "sub").mkdir()
        (new / "sub" / "inner").write_text("new")
    assert sorted(calls[:-3]) == ["inner", "sub"]
    assert calls[-3:] == [new.name, "exchange", tmp_path.name]


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "os.write", "os.open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, number: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(where, fail(number))
    with pytest.raises(EdgememError, match=f"cannot write .*file: {os.strerror(number)}"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"], "nothing is left beside it"


def test_ctrl_c_leaves_the_old_file_and_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file"]


def run_with_a_full_disk(script: str) -> str:
    """The output of a Python script in which no file may grow beyond 4 KiB."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    done = subprocess.run([sys.executable, "-c", limit + script], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_disk_that_is_really_full_leaves_the_old_file_and_the_old_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "inner").write_bytes(b"old")
    said = run_with_a_full_disk(f"""
from pathlib import Path
from edgemem.errors import EdgememError
from edgemem.files import replace_folder, write_atomic
here = Path({str(tmp_path)!r})
try:
    write_atomic(here / "file", b"n" * 100_000)
except EdgememError as error:
    print(error)
try:
    with replace_folder(here / "folder") as new:
        (new / "inner").write_bytes(b"n" * 100_000)
except EdgememError as error:
    print(error)
""")
    assert said.count("cannot write") == 2
    assert (tmp_path / "file").read_bytes() == (tmp_path / "folder" / "inner").read_bytes() == b"old"
    assert names_in(tmp_path) == ["file", "folder"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "below", tmp_path / "missing" / "file", tmp_path):
        with pytest.raises(EdgememError, match="cannot write"):
            write_atomic(path, b"new")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(EdgememError, match="cannot write"), replace_folder(tmp_path / "file" / "below"):
        pass


# A folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inner").write_text("old")
    return folder


def fill(folder: Path) -> None:
    with replace_folder(folder) as new:
        (new / "sub").mkdir()
        (new / "sub" / "inner").write_text("new")


def test_a_folder_takes_its_place_when_the_block_ends(tmp_path: Path, old: Path) -> None:
    with replace_folder(old) as new:
        (new / "other").write_text("new")
        assert (old / "inner").read_text() == "old", "until then the old one is there"
    assert names_in(old) == ["other"]
    assert names_in(tmp_path) == ["folder"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    fill(tmp_path / "a" / "b" / "folder")
    assert (tmp_path / "a" / "b" / "folder" / "sub" / "inner").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), EdgememError("mine")])
def test_an_error_in_the_block_is_passed_on_and_the_old_folder_stays(
    tmp_path: Path, old: Path, error: BaseException
) -> None:
    def fail() -> None:
        with replace_folder(old) as new:
            (new / "half").write_text("new")
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    assert names_in(tmp_path) == ["folder"]
    assert (old / "inner").read_text() == "old"


@pytest.mark.parametrize("where", ["os.fsync", "os.mkdir"])
def test_a_disk_that_fails_leaves_the_old_folder(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(where, fail(errno.ENOSPC))
    with pytest.raises(EdgememError, match=f"cannot write .*folder: {os.strerror(errno.ENOSPC)}"):
        fill(old)
    assert (old / "inner").read_text() == "old"
    assert names_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("call", [1, 2])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken"), KeyboardInterrupt()])
def test_a_swap_that_is_cut_short_puts_the_old_folder_back(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException
) -> None:
    monkeypatch.setattr("edgemem.files._exchange", lambda *_: False)
    rename, calls = os.rename, []

    def failing(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) == call:
            raise error
        rename(source, target)

    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(EdgememError if isinstance(error, OSError) else KeyboardInterrupt):
        fill(old)
    assert (old / "inner").read_text() == "old"
    assert names_in(tmp_path) == ["folder"]


def test_if_the_old_folder_cannot_be_put_back_it_is_still_not_deleted(
    tmp_path: Path, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgemem.files._exchange", lambda *_: False)
    rename, calls = os.rename, []

    def failing(source: Any, target: Any) -> None:
        calls.append(source)
        if len(calls) > 1:
            raise OSError(errno.EIO, "broken")
        rename(source, target)

    monkeypatch.setattr("os.rename", failing)
    with pytest.raises(EdgememError, match="broken"):
        fill(old)
    assert [path.read_text() for path in tmp_path.rglob("inner")] == ["old"]


def test_being_killed_leaves_the_old_folder(old: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from edgemem.files import replace_folder
with replace_folder(Path({str(old)!r})) as new:
    (new / "half").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -signal.SIGKILL
    assert names_in(old) == ["inner"]
    assert (old / "inner").read_text() == "old"
