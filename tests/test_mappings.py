"""The content of a mapped file moves into private memory at the same address."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path

import pytest

from edgemem import mappings
from edgemem.errors import EdgememError
from edgemem.mappings import make_private

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone does it")


def mapped(path: Path, content: bytes, kind: int = mmap.MAP_PRIVATE) -> mmap.mmap:
    path.write_bytes(content)
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), len(content), flags=kind, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def is_mapped(folder: Path) -> bool:
    return any(mapping.name.startswith(str(folder)) for mapping in mappings.mappings())


@pytest.mark.parametrize("steady", [True, False])
def test_a_file_may_be_cut_short_and_deleted_afterwards(tmp_path: Path, steady: bool) -> None:
    content = os.urandom(3 * mmap.PAGESIZE + 5)
    folder = tmp_path / "a folder"
    folder.mkdir()
    with mapped(folder / "file", content) as memory:
        assert is_mapped(folder)
        assert make_private(folder, steady=steady)
        assert not is_mapped(folder)
        os.truncate(folder / "file", 0)
        (folder / "file").unlink()
        assert memory[:] == content
        memory[0:1] = b"x"
        assert memory[1:] == content[1:]


def test_a_file_that_is_cut_short_while_it_is_read_is_told(tmp_path: Path) -> None:
    with mapped(tmp_path / "file", os.urandom(9 * mmap.PAGESIZE)) as memory:
        os.truncate(tmp_path / "file", 2 * mmap.PAGESIZE)
        assert not make_private(tmp_path, steady=False)
        assert is_mapped(tmp_path)
        assert len(memory[: mmap.PAGESIZE]) == mmap.PAGESIZE


def test_where_the_kernel_must_not_be_asked_memory_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libc = ctypes.CDLL(None, use_errno=True)

    class Forbidding:
        mmap, mremap, munmap = libc.mmap, libc.mremap, libc.munmap

        @staticmethod
        def process_vm_readv(*_: object) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    with mapped(tmp_path / "file", b"content") as memory:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Forbidding)
        assert make_private(tmp_path, steady=False)
        assert memory[:] == b"content"


def test_a_deleted_file_is_still_recognised(tmp_path: Path) -> None:
    with mapped(tmp_path / "file", b"content") as memory:
        (tmp_path / "file").unlink()
        assert make_private(tmp_path, steady=True)
        assert not is_mapped(tmp_path)
        assert memory[:] == b"content"


def test_other_folders_and_shared_mappings_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    outside = mapped(tmp_path / "folder2", b"content")
    shared = mapped(tmp_path / "folder" / "file", b"content", mmap.MAP_SHARED)
    with outside, shared:
        assert make_private(tmp_path / "folder", steady=True)
        assert len([mapping for mapping in mappings.mappings() if mapping.name.startswith(str(tmp_path))]) == 2


def test_without_memory_the_mapping_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        @staticmethod
        def mmap(*_: object) -> int | None:
            ctypes.set_errno(12)
            return ctypes.c_void_p(-1).value

        mremap = mmap

    with mapped(tmp_path / "file", b"content") as memory:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Refusing)
        with pytest.raises(EdgememError, match=r"4,096 bytes of .*/file cannot be copied into memory: Cannot allocate"):
            make_private(tmp_path, steady=True)
        monkeypatch.undo()
        assert memory[:] == b"content"


def test_a_system_that_does_not_tell_its_mappings_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "_MAPS", tmp_path / "missing")
    with mapped(tmp_path / "file", b"content"):
        assert make_private(tmp_path, steady=True)
