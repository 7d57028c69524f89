"""A process's own share of memory is the kernel's figure."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgemem.bench.devices.memory import proportional_bytes
from edgemem.machine.memory import peak_bytes
from tests.bench.devices import recorded

ROLLUP = """\
55d0c0a00000-7ffd2f3fe000 ---p 00000000 00:00 0                          [rollup]
Rss:              123456 kB
Pss:               98765 kB
Pss_Dirty:         54321 kB"""


def test_the_share_is_the_one_that_counts_shared_pages_in_part(tmp_path: Path) -> None:
    recorded.write(tmp_path, {"proc/self/smaps_rollup": ROLLUP})
    assert proportional_bytes(tmp_path) == 98765 * 1024


@pytest.mark.parametrize("text", [None, "", "Pss: much", "Pss:"])
def test_a_kernel_that_does_not_tell_gives_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        recorded.write(tmp_path, {"proc/self/smaps_rollup": text})
    assert proportional_bytes(tmp_path) is None


def test_this_process_has_no_more_of_its_own_than_is_resident() -> None:
    share = proportional_bytes()
    if share is None:
        pytest.skip("this kernel has no smaps_rollup")
    assert 0 < share <= peak_bytes()
