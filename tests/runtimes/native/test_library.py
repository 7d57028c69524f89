"""A library that cannot be used is never an error: the reason is told, and the standard graph runs."""

import shutil

import pytest

from edgemem.runtimes import native
from edgemem.runtimes.native import build


def test_without_a_library_there_is_a_reason(tmp_path):
    found = native.look(tmp_path / "missing.so")
    assert (found.path, found.level) == (None, "")
    assert found.reason == "the native operators were not compiled when edgemem was installed"


@pytest.mark.parametrize("content", [b"", b"not a library", b"\x7fELF" + bytes(200)])
def test_a_corrupt_library_is_not_used(tmp_path, content):
    path = tmp_path / build.LIBRARY
    path.write_bytes(content)
    assert native.look(path).reason.startswith("the native operators cannot be loaded: ")


def test_a_library_of_another_processor_is_not_used(tmp_path):
    path = tmp_path / build.LIBRARY
    header = bytearray(native.library().read_bytes())
    header[18] = 21  # the machine: PowerPC
    path.write_bytes(header)
    assert native.look(path).reason.startswith("the native operators cannot be loaded: ")


def test_a_library_of_another_version_is_not_used(monkeypatch):
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    found = native.look(native.library())
    assert found.path is None
    assert found.reason == f"the native operators have version {native.VERSION - 1}, and edgemem needs {native.VERSION}"


@pytest.fixture
def fake_compiler(tmp_path, monkeypatch):
    def make(script: str) -> None:
        path = tmp_path / "cc"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("CC", str(path))

    return make


def test_without_a_compiler_there_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert build.build(tmp_path / "lib.so") == "no C compiler was found (gcc, cc, clang or $CC)"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo sparc64-linux-gnu", "there are no kernels for the processor sparc64"),
        ("test $1 = -dumpmachine && echo x86_64-linux-gnu || exit 3", "the C compiler or its headers cannot be used"),
        ("case $1 in -dumpmachine) echo x86_64-;; -E) ;; *) echo broken >&2; exit 4;; esac", "broken"),
    ],
)
def test_a_compiler_that_fails_gives_a_reason(fake_compiler, tmp_path, script, reason):
    fake_compiler(script)
    assert reason in build.build(tmp_path / "made" / "lib.so")
    assert not (tmp_path / "made" / "lib.so").exists()


def test_a_compiler_that_does_not_exist_gives_a_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert "cannot be used" in build.build(tmp_path / "lib.so")
