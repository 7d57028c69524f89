"""The content of a mapped file moves into private memory at the same address."""

from __future__ import annotations

import ctypes
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


def test_a_file_may_be_cut_short_and_deleted_afterwards(tmp_path: Path) -> None:
    content = os.urandom(3 * mmap.PAGESIZE + 5)
    folder = tmp_path / "a folder"
    folder.mkdir()
    with mapped(folder / "file", content) as memory:
        assert is_mapped(folder)
        make_private(folder)
        assert not is_mapped(folder)
        os.truncate(folder / "file", 0)
        (folder / "file").unlink()
        assert memory[:] == content
        memory[0:1] = b"x"
        assert memory[1:] == content[1:]


def test_a_deleted_file_is_still_recognised(tmp_path: Path) -> None:
    with mapped(tmp_path / "file", b"content") as memory:
        (tmp_path / "file").unlink()
        make_private(tmp_path)
        assert not is_mapped(tmp_path)
        assert memory[:] == b"content"


def test_neighbours_of_any_size_move_together(tmp_path: Path) -> None:
    """As an engine maps weights: pieces of a file, one after another, longer than a huge page and shorter."""
    page, content = mmap.PAGESIZE, os.urandom(7 << 20)
    (tmp_path / "file").write_bytes(content)
    pieces = [(5 * page, (4 << 20) + 3 * page), (0, page), ((3 << 20), (3 << 20) + page)]  # offset, bytes
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.mmap.argtypes = (
        ctypes.c_void_p,
        (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long),
    )
    with mmap.mmap(-1, sum(size for _, size in pieces) + page) as place, (tmp_path / "file").open("rb") as file:
        start = at = ctypes.addressof(ctypes.c_char.from_buffer(place))
        for offset, size in pieces:
            fixed = mmap.MAP_PRIVATE | 0x10
            assert libc.mmap(at, size, mmap.PROT_READ, fixed, file.fileno(), offset) == at
            at += size
        place_behind = ctypes.string_at(at, page)
        make_private(tmp_path)
        assert not is_mapped(tmp_path)
        os.truncate(tmp_path / "file", 0)
        wanted = b"".join(content[offset : offset + size] for offset, size in pieces)
        assert ctypes.string_at(start, len(wanted)) == wanted
        assert ctypes.string_at(at, page) == place_behind


def test_what_is_mapped_twice_is_held_once(tmp_path: Path) -> None:
    """As two graphs map the same weights: each sees them, and a change of one place is not seen in the other."""
    content = os.urandom(64 << 20)
    with mapped(tmp_path / "file", content) as first, mapped(tmp_path / "file", content) as second:
        before = proportional_bytes()
        make_private(tmp_path)
        assert not is_mapped(tmp_path)
        os.truncate(tmp_path / "file", 0)
        assert first[:] == content
        assert second[:] == content
        assert proportional_bytes() < before + len(content) * 1.1
        first[0:1] = b"x" if content[:1] != b"x" else b"y"
        assert second[:] == content


def test_without_files_that_have_no_name_every_mapping_has_its_own_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> int:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", forbidden)
    content = os.urandom(3 * mmap.PAGESIZE)
    with mapped(tmp_path / "file", content) as first, mapped(tmp_path / "file", content) as second:
        make_private(tmp_path)
        assert not is_mapped(tmp_path)
        os.truncate(tmp_path / "file", 0)
        assert first[:] == second[:] == content


def proportional_bytes() -> int:
    """Resident bytes of this process, what is mapped twice counted once."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024


def test_other_folders_and_shared_mappings_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    outside = mapped(tmp_path / "folder2", b"content")
    shared = mapped(tmp_path / "folder" / "file", b"content", mmap.MAP_SHARED)
    with outside, shared:
        make_private(tmp_path / "folder")
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
            make_private(tmp_path)
        monkeypatch.undo()
        assert memory[:] == b"content"


def test_a_system_that_does_not_tell_its_mappings_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mappings, "_MAPS", tmp_path / "missing")
    with mapped(tmp_path / "file", b"content"):
        make_private(tmp_path)
