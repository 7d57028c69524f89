"""The facts about a machine are read from its files; what is missing is left empty."""

import os
import platform

import pytest

from edgemem.machine import facts, kernel, memory


def test_this_machine_is_described():
    found = facts.facts()
    assert found.machine == platform.machine()
    assert found.python == platform.python_version()
    assert 1 <= found.usable_cores <= found.cores == os.cpu_count()
    assert "numpy" in found.packages
    assert "python" not in found.packages
    assert found.memory_bytes == memory.total_bytes() > 1 << 28


def test_a_machine_without_the_kernels_files_leaves_fields_empty(monkeypatch):
    for module in (facts, memory, kernel):
        monkeypatch.setattr(module, "read", lambda path: None)
    found = facts.facts()
    assert (found.governor, found.board, found.memory_bytes) == (None, None, 0)
    assert found.os == platform.platform()
    assert memory.available_bytes() is None
    assert memory.resident_bytes() == memory.peak_bytes() > 0


def test_memory_of_this_process_is_counted():
    if memory.status_bytes("VmHWM") == 0:
        pytest.skip("this system has no /proc")
    block = bytearray(b"x" * (64 << 20))
    assert memory.peak_bytes() >= memory.resident_bytes() > len(block)
    assert memory.status_bytes("VmRSS", os.getpid()) > len(block)
    assert memory.status_bytes("NoSuchEntry") == 0
    assert 0 < (memory.available_bytes() or 1) <= memory.total_bytes()


def test_an_entry_is_found_by_its_whole_name(tmp_path):
    path = tmp_path / "status"
    path.write_text("VmHWMark:  7 kB\nVmHWM:\t  12 kB\n")
    assert kernel.entry_bytes(str(path), "VmHWM") == 12 * 1024
    assert kernel.entry_bytes(str(path), "VmH") == 0
    assert kernel.entry_bytes(str(tmp_path / "missing"), "VmHWM") == 0
