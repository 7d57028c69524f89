"""Weights in a mapped file leave memory, and are read again when they are used."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgemem import mappings
from edgemem.machine.paging import page_out

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone does it")

VALUES = torch.arange(1 << 20, dtype=torch.float32)


def mapped(tensor: torch.Tensor, path: Path) -> torch.Tensor:
    """The tensor, from a file that is mapped."""
    path.write_bytes(tensor.numpy().tobytes())
    return torch.from_file(str(path), size=tensor.numel(), dtype=tensor.dtype)


def resident_bytes(tensor: torch.Tensor) -> int:
    """Of the region of memory that a tensor begins in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first:
            start, end = (int(address, 16) for address in first.split("-"))
            inside = start <= tensor.data_ptr() < end
        elif inside and first == "Rss:":
            return int(rest[0]) * 1024
    raise AssertionError("the tensor lies in no region")


def module_of(tensor: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("weight", tensor)
    return module


def test_what_a_file_holds_leaves_memory_and_comes_back(tmp_path):
    tensor = mapped(VALUES, tmp_path / "weights")
    assert float(tensor.sum()) > 0  # it is in memory now
    assert resident_bytes(tensor) == VALUES.nbytes
    if page_out(module_of(tensor)) == 0:
        pytest.skip("this kernel does not give pages back")
    assert resident_bytes(tensor) == 0
    assert torch.equal(tensor, VALUES)


def test_what_no_file_holds_stays():
    tensor = VALUES.clone()
    assert page_out(module_of(tensor)) == 0
    assert torch.equal(tensor, VALUES)


def test_a_view_gives_back_whole_pages_of_its_own_only(tmp_path):
    tensor = mapped(VALUES, tmp_path / "weights")
    part = tensor[1:2049]  # 8 KiB that begin 4 bytes into a page: one whole page
    if (given_back := page_out(module_of(part))) == 0:
        pytest.skip("this kernel does not give pages back")
    assert given_back == 4096
    assert page_out(module_of(tensor[1:5])) == 0
    assert torch.equal(tensor, VALUES)


def test_a_system_that_does_not_tell_its_mappings_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mappings, "_MAPS", tmp_path / "missing")
    tensor = mapped(VALUES, tmp_path / "weights")
    assert page_out(module_of(tensor)) == 0
