"""What was hashed is what is loaded, and a running session sees nothing of what happens to its files."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from io import FileIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import edgemem
from edgemem import files
from edgemem.bundle import WEIGHTS, Bundle, open_bundle
from edgemem.errors import BundleError, EdgememError
from edgemem.mappings import mappings
from edgemem.runtimes.ort import engine
from edgemem.runtimes.ort.load import load_graph
from edgemem.runtimes.registry import Runtime
from edgemem.unchanged import Stamp
from tests.handmade import write_looker

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells mappings")


@pytest.fixture
def looker(tmp_path: Path) -> Path:
    """A model that looks up token t in a table of external data, row t of which is full of t."""
    return write_looker(tmp_path / "looker", 1.0)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same model with another table of the same size."""
    return write_looker(tmp_path / "other", 2.0)


def outputs(stream: Any) -> list[float]:
    return [float(stream.step(token)[0, 0]) for token in (1, 7, 63)]


def cut(path: Path) -> None:
    os.truncate(path, 0)


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("change", [cut, overwrite, Path.unlink])
def test_a_session_computes_the_same_whatever_happens_to_its_weights(
    looker: Path, change: Callable[[Path], None]
) -> None:
    with edgemem.open(looker, "onnxruntime", device="cpu") as session:
        stream = session.stream()
        stream.step(1)
        change(looker / WEIGHTS)
        assert outputs(stream) == [1, 7, 63]
        assert outputs(session.stream()) == [1, 7, 63]


def test_no_file_of_the_bundle_stays_mapped(looker: Path) -> None:
    with edgemem.open(looker, "onnxruntime", device="cpu"):
        assert not [mapping for mapping in mappings() if str(looker) in mapping.name]


def in_place(source: Path, target: Path) -> None:
    (target / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes())


def by_name(source: Path, target: Path) -> None:
    shutil.copyfile(source / WEIGHTS, target / "new")
    os.replace(target / "new", target / WEIGHTS)


def whole_folder(source: Path, target: Path) -> None:
    target.rename(target.parent / "away")
    shutil.copytree(source, target)


SWAPS = [in_place, by_name, whole_folder]


@pytest.mark.parametrize("swap", SWAPS)
def test_weights_swapped_after_they_were_hashed_are_not_loaded(
    looker: Path, other: Path, swap: Callable[[Path, Path], None]
) -> None:
    bundle = open_bundle(looker)
    swap(other, looker)
    with pytest.raises(BundleError, match=f"SHA-256 of {WEIGHTS} differs"):
        engine.OrtSession(bundle, device="cpu")


def test_a_bundle_that_was_deleted_after_it_was_opened_is_named(looker: Path) -> None:
    bundle = open_bundle(looker)
    shutil.rmtree(looker)
    with pytest.raises(BundleError, match="looker cannot be read: No such file"):
        engine.OrtSession(bundle, device="cpu")


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("swap", SWAPS)
def test_weights_swapped_while_they_are_loaded_are_never_served_under_the_old_fingerprint(
    looker: Path, other: Path, monkeypatch: pytest.MonkeyPatch, swap: Callable[[Path, Path], None], moment: str
) -> None:
    """A write in place waits for the lease, so another thread tries it."""

    def swapping(*arguments: Any) -> Any:
        writer = threading.Thread(target=swap, args=(other, looker))
        loaded = load_graph(*arguments) if moment == "after" else None
        writer.start()
        writer.join(0.1)
        return loaded or load_graph(*arguments)

    monkeypatch.setattr(engine, "load_graph", swapping)
    with (
        contextlib.suppress(BundleError),
        edgemem.open(looker, "onnxruntime", device="cpu") as session,
    ):
        assert outputs(session.stream()) == [1, 7, 63]


def write_both(looker: Path, other: Path) -> None:
    """Write one's weights, then the other's, in place."""
    for content in ((other / WEIGHTS).read_bytes(), Path(f"{looker}.weights").read_bytes()):
        (looker / WEIGHTS).write_bytes(content)


def rename_both(looker: Path, other: Path) -> None:
    for source in (other / WEIGHTS, Path(f"{looker}.weights")):
        shutil.copyfile(source, looker / "new")
        os.replace(looker / "new", looker / WEIGHTS)


def exchange_both(looker: Path, other: Path) -> None:
    assert files._exchange(looker, other)


@pytest.mark.long
@pytest.mark.parametrize("swap", [write_both, rename_both, exchange_both])
def test_bundles_opened_during_swaps_compute_what_their_fingerprint_says(
    looker: Path, other: Path, swap: Callable[[Path, Path], None]
) -> None:
    scales = {open_bundle(looker).fingerprint: 1.0, open_bundle(other).fingerprint: 2.0}
    shutil.copyfile(looker / WEIGHTS, f"{looker}.weights")
    parent, child = os.getpid(), os.fork()
    if child == 0:
        while os.getppid() == parent:
            swap(looker, other)
            time.sleep(random.uniform(0, 0.02))  # now and then long enough for a bundle to open
        os._exit(0)
    opened: list[bool] = []
    try:
        for _ in range(500):
            try:
                with edgemem.open(looker, "onnxruntime", device="cpu") as session:
                    assert session.bundle is not None
                    expected = scales[session.bundle.fingerprint]
                    assert outputs(session.stream()) == [expected * token for token in (1, 7, 63)]
                opened.append(True)
            except BundleError:
                opened.append(False)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert len(opened) == 500
    assert any(opened)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("change", [cut, overwrite, Path.unlink])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_bundle_that_somebody_has_open_for_writing_is_loaded_from_a_copy(
    looker: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], moment: str
) -> None:
    def changing(*given: Any, **options: Any) -> Any:
        assert [file.name for file in temporary.rglob(WEIGHTS)] == [WEIGHTS]
        loaded = load_graph(*given, **options) if moment == "after" else None
        change(looker / WEIGHTS)
        return loaded or load_graph(*given, **options)

    monkeypatch.setattr(engine, "load_graph", changing)
    with (looker / WEIGHTS).open("r+b"), edgemem.open(looker, "onnxruntime", device="cpu") as session:
        assert outputs(session.stream()) == [1, 7, 63]
        assert not list(temporary.iterdir())
        assert not [mapping for mapping in mappings() if str(temporary) in mapping.name]


@pytest.mark.parametrize("swap", SWAPS)
def test_what_is_copied_is_hashed_as_it_is_read(
    looker: Path, other: Path, temporary: Path, swap: Callable[[Path, Path], None]
) -> None:
    bundle = open_bundle(looker)
    swap(other, looker)
    with (
        (looker / WEIGHTS).open("r+b"),
        pytest.raises(BundleError, match=f"SHA-256 of {WEIGHTS} differs"),
    ):
        engine.OrtSession(bundle, device="cpu")
    assert not list(temporary.iterdir())


def test_without_room_for_the_copy_it_is_said_what_to_do(
    looker: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(temporary)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    where = f"are not free in {temporary} or /dev/shm"
    with (
        (looker / WEIGHTS).open("r+b"),
        pytest.raises(EdgememError, match=f"others may write to the files of .*looker.*{where}") as caught,
    ):
        edgemem.open(looker, "onnxruntime", device="cpu")
    assert "Let the user that runs this own them, set TMPDIR" in str(caught.value.hint)


def test_a_copy_that_a_killed_process_left_is_removed_by_the_next(looker: Path, temporary: Path) -> None:
    killed = os.fork()
    if killed == 0:
        with (looker / WEIGHTS).open("r+b"), open_bundle(looker).loading():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    assert len(list(temporary.iterdir())) == 1
    with (looker / WEIGHTS).open("r+b"), open_bundle(looker).loading() as copy:
        assert list(temporary.iterdir()) == [copy]


def test_files_that_have_not_changed_are_hashed_once(looker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.03)
    bundle = open_bundle(looker)
    monkeypatch.setattr(Bundle, "_verify", lambda *_: pytest.fail("hashed again"))
    engine.OrtSession(bundle, device="cpu").close()


def test_weights_are_hashed_by_another_thread_while_they_are_loaded(
    looker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, hashed = threading.Event(), []

    def verify(bundle: Bundle, name: str, *arguments: Any) -> None:
        hashed.append((name, threading.get_ident(), name != WEIGHTS or loading.wait(9.0)))

    monkeypatch.setattr(Bundle, "_verify", verify)
    monkeypatch.setattr(engine, "load_graph", lambda *arguments: loading.set() or load_graph(*arguments))
    edgemem.open(looker, "onnxruntime", device="cpu").close()
    (_, thread, was_loading), others = hashed[-1], hashed[:-1]
    assert was_loading
    assert thread != threading.get_ident()
    assert {name for name, *_ in others} == open_bundle(looker).manifest.files.keys() - {WEIGHTS}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_weights_that_were_changed_explain_what_an_engine_says_of_them(
    looker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise EdgememError("this cannot be loaded.")

    monkeypatch.setattr(engine, "load_graph", refuse)
    with pytest.raises(EdgememError, match="this cannot be loaded"):
        edgemem.open(looker, "onnxruntime", device="cpu")
    flip(looker / WEIGHTS)
    with pytest.raises(BundleError, match=f"SHA-256 of {WEIGHTS} differs"):
        edgemem.open(looker, "onnxruntime", device="cpu")


def test_weights_are_hashed_though_a_runtime_does_not_load_them(looker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    session = SimpleNamespace(close=lambda: closed.append(True))
    monkeypatch.setattr(Runtime, "open", lambda *_, **__: session)
    assert edgemem.open(looker, "onnxruntime") is session
    flip(looker / WEIGHTS)
    with pytest.raises(BundleError, match=f"SHA-256 of {WEIGHTS} differs"):
        edgemem.open(looker, "onnxruntime")
    assert closed == [True]


def test_whoever_interrupts_a_start_does_not_wait_for_the_hashes(looker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = threading.Event()

    def hash_for_ever(file: FileIO, _: Path | None = None) -> str:
        began.set()
        while True:
            file.seek(0)

    monkeypatch.setattr("edgemem.bundle.hash_of", hash_for_ever)

    def start() -> None:
        with open_bundle(looker, verify=False).loading():
            began.wait(9.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start()


@pytest.mark.parametrize(
    ("later_ns", "settled"), [(0, False), (10_000_000, False), (30_000_000, True), (-(10**9), True)]
)
def test_a_stamp_settles_after_a_tick_of_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later_ns: int, settled: bool
) -> None:
    (tmp_path / "file").touch()
    stamp = Stamp.of(tmp_path / "file")
    monkeypatch.setattr(time, "time_ns", lambda: stamp.changed_ns + later_ns)
    assert stamp.is_settled is settled


def test_a_stamp_is_of_one_file_and_one_content(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    stamp = Stamp.of(tmp_path / "file")
    assert stamp.is_of(tmp_path / "file")
    assert not stamp.is_of(tmp_path / "nowhere")
    time.sleep(0.03)
    (tmp_path / "file").write_bytes(b"2")
    assert not stamp.is_of(tmp_path / "file")


def test_a_file_is_read_as_it_was_hashed(looker: Path) -> None:
    bundle = open_bundle(looker)
    assert bundle.read(WEIGHTS, 1 << 20) == (looker / WEIGHTS).read_bytes()
    with pytest.raises(BundleError, match="at most 10 are allowed"):
        bundle.read(WEIGHTS, 10)
    overwrite(looker / WEIGHTS)
    with pytest.raises(BundleError, match="SHA-256"):
        bundle.read(WEIGHTS, 1 << 20)
