"""Joining pages changes how memory is backed, never what it holds; where it cannot be done, nothing happens."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgemem import mappings
from edgemem.machine import huge_pages

ends = st.lists(st.integers(0, 60), unique=True, max_size=12).map(sorted)


def as_regions(points: list[int]) -> list[tuple[int, int]]:
    return list(zip(points[::2], points[1::2], strict=False))


@given(ends, ends)
def test_what_was_mapped_before_is_left_out_byte_for_byte(now, before):
    regions, taken = as_regions(now), as_regions(before)

    def covered(parts):
        return {byte for start, end in parts for byte in range(start, end)}

    assert covered(huge_pages._without(regions, taken)) == covered(regions) - covered(taken)


def test_memory_keeps_its_content():
    before = huge_pages.anonymous_regions()
    with mmap.mmap(-1, 5 * huge_pages.HUGE_BYTES) as memory:
        array = np.frombuffer(memory, dtype=np.uint32)
        array[:] = np.arange(array.size, dtype=np.uint32)
        joined = huge_pages.join_pages_since(before)
        assert 0 <= joined % huge_pages.HUGE_BYTES == 0
        assert np.array_equal(array, np.arange(array.size, dtype=np.uint32))
        del array


def test_the_administrators_never_is_respected(monkeypatch, tmp_path):
    policy = tmp_path / "enabled"
    policy.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "_POLICY", policy)
    with mmap.mmap(-1, 5 * huge_pages.HUGE_BYTES):
        assert huge_pages.join_pages_since([]) == 0


@pytest.mark.parametrize(("module", "missing"), [(huge_pages, "_POLICY"), (mappings, "_MAPS")])
def test_a_system_without_these_files_joins_nothing(monkeypatch, module, missing):
    monkeypatch.setattr(module, missing, Path("/no/such/file"))
    assert huge_pages.join_pages_since([]) == 0
    if missing == "_MAPS":
        assert huge_pages.anonymous_regions() == []
