"""Whenever a process is killed, there is the old whole or the new whole, and the next start leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgemem import files, leftovers
from edgemem.bundle import MANIFEST, open_bundle
from edgemem.errors import BundleError
from edgemem.files import replace_folder, write_atomic
from tests.handmade import write_summer

CALLS = ("open", "write", "fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir", "fchmod")
OLD, NEW = {"a": b"old", "sub/b": b"old"}, {"a": b"new", "c/d": b"new"}


def write_folder(path: Path, content: dict[str, bytes]) -> None:
    with replace_folder(path) as new:
        for name, data in content.items():
            (new / name).parent.mkdir(exist_ok=True)
            write_atomic(new / name, data)


def write_file(path: Path, content: dict[str, bytes]) -> None:
    write_atomic(path, content["a"])


def found(path: Path) -> dict[str, bytes] | None:
    if path.is_file():
        return {"a": path.read_bytes()}
    inside = [place for place in path.rglob("*") if place.is_file()]
    return {place.relative_to(path).as_posix(): place.read_bytes() for place in inside} if path.exists() else None


def dying(real: Callable[..., Any], countdown: Iterator[int]) -> Callable[..., Any]:
    """A call after which the process is killed when the countdown ends."""

    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return real(*arguments, **options)
        finally:
            if next(countdown) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return call


def killed_after(number: int, work: Callable[[], None], exchanges: bool) -> bool:
    """Do the work in a process that is killed after its nth call of the system; whether it came so far."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            countdown = iter(range(number, -1_000_000, -1))
            exchange = files._exchange if exchanges else lambda *_: False
            files._exchange = dying(exchange, countdown)  # type: ignore[assignment]
            for name in CALLS:
                setattr(os, name, dying(getattr(os, name), countdown))
            work()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize(
    ("write", "exchanges", "existing"),
    [
        pytest.param(write_file, True, True, id="file"),
        pytest.param(write_file, True, False, id="new file"),
        pytest.param(write_folder, True, True, id="folder"),
        pytest.param(write_folder, True, False, id="new folder"),
        pytest.param(write_folder, False, True, id="folder that cannot be exchanged"),
    ],
)
def test_a_kill_between_any_two_calls_leaves_the_old_whole_or_the_new_whole(
    tmp_path: Path, write: Callable[..., None], exchanges: bool, existing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the machine stays up: only the process ends
    number = 0
    wholes: list[dict[str, bytes] | None] = []
    while True:
        home = tmp_path / str(number)
        home.mkdir()
        path = home / "it"
        if existing:
            write(path, OLD)
        before = found(path)
        killed = killed_after(number, lambda path=path: write(path, NEW), exchanges)  # type: ignore[misc]
        after = found(path)
        if after is None and existing:
            assert not exchanges, "there is no moment without the folder where two can change places"
            assert leftovers.recover(path)
            after = found(path)
        new = {"a": b"new"} if write is write_file else NEW
        assert after in (before, new)
        wholes.append(after)
        write(path, OLD)
        assert os.listdir(home) == ["it"], "the next start tidies up"
        if not killed:
            break
        number += 1
    assert number >= 6
    assert wholes[0] == before
    assert wholes[-1] == new


@pytest.mark.long
@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_kill_at_a_random_moment_leaves_the_old_whole_or_the_new_whole(
    tmp_path: Path, write: Callable[..., None], exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 kills each."""
    chance, path = random.Random(0), tmp_path / "it"
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    write(path, OLD)
    for _ in range(250):
        child = os.fork()
        if child == 0:
            while True:
                write(path, NEW)
                write(path, OLD)
        time.sleep(chance.random() * 0.02)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert exchanges or leftovers.recover(path)
        assert found(path) in (OLD, NEW, {"a": b"old"}, {"a": b"new"})
    write(path, OLD)
    assert os.listdir(tmp_path) == ["it"]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder that a process without RENAME_EXCHANGE moved aside before it was killed."""
    write_summer(tmp_path / "bundle")
    left = leftovers.beside(tmp_path / "bundle", leftovers.REPLACED)
    (tmp_path / "bundle").rename(left)
    return left


def test_a_bundle_that_was_moved_aside_is_put_back_when_it_is_opened(tmp_path: Path, old: Path) -> None:
    assert open_bundle(tmp_path / "bundle").contract.states
    assert os.listdir(tmp_path) == ["bundle"]


def test_what_another_process_is_working_on_is_left_alone(tmp_path: Path, old: Path) -> None:
    handle = os.open(old, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(BundleError, match="does not exist"):
        open_bundle(tmp_path / "bundle")
    write_summer(tmp_path / "bundle")
    assert sorted(os.listdir(tmp_path)) == sorted([old.name, "bundle"])
    os.close(handle)
    write_summer(tmp_path / "bundle")
    assert os.listdir(tmp_path) == ["bundle"]


def test_a_folder_without_a_manifest_is_not_taken_for_one_that_was_moved_aside(tmp_path: Path, old: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(BundleError, match=f"has no {MANIFEST}"):
        open_bundle(tmp_path / "bundle")


def test_files_with_names_of_others_are_left_alone(tmp_path: Path) -> None:
    names = [
        ".it.tmp",
        ".it.0123456789abcdef.tmp.x",
        ".its.0123456789abcdef.tmp",
        "it.0123456789abcdef.tmp",
        ".it.ab.old",
    ]
    for name in names:
        (tmp_path / name).touch()
    write_atomic(tmp_path / "it", b"new")
    assert sorted(os.listdir(tmp_path)) == sorted([*names, "it"])


def test_a_folder_that_cannot_be_locked_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks here")

    (tmp_path / ".it.0123456789abcdef.tmp").touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    write_atomic(tmp_path / "it", b"new")
    write_folder(tmp_path / "folder", NEW)
    assert sorted(os.listdir(tmp_path)) == [".it.0123456789abcdef.tmp", "folder", "it"], "who is alive is not known"


def test_a_folder_whose_lock_another_program_keeps_is_waited_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "_PATIENCE_S", 0.02)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    write_atomic(tmp_path / "it", b"new")
    os.close(handle)
    assert os.listdir(tmp_path) == ["it"]


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    name = "é" * 125
    write_atomic(tmp_path / name, b"new")
    write_folder(tmp_path / f"{name}2", NEW)
    assert sorted(os.listdir(tmp_path)) == sorted([name, f"{name}2"])


def test_threads_that_write_one_file_do_not_take_each_others_work_for_left_over(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(data: bytes) -> None:
        try:
            for _ in range(20):
                write_atomic(tmp_path / "it", data)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(bytes([65 + n]) * 1000,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert os.listdir(tmp_path) == ["it"]
    assert len(set((tmp_path / "it").read_bytes())) == 1


def test_sigterm_ends_the_block_and_removes_the_new_folder(tmp_path: Path) -> None:
    write_folder(tmp_path / "it", OLD)
    script = f"""
import os, signal
from pathlib import Path
from edgemem.files import replace_folder
with replace_folder(Path({str(tmp_path / "it")!r})) as new:
    (new / "half").write_text("new")
    os.kill(os.getpid(), signal.SIGTERM)
    print("not ended")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", "")
    assert os.listdir(tmp_path) == ["it"]
    assert found(tmp_path / "it") == OLD


def test_who_handles_sigterm_already_keeps_doing_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with replace_folder(tmp_path / "it"):
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with replace_folder(tmp_path / "it"):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
