"""The rehearsal of docs/jetson.md takes every block of the page."""

import subprocess
from pathlib import Path

from boards import blocks
from tests.docs.pages import ROOT
from tests.docs.pages import blocks as page_blocks

PAGE = ROOT / "docs/jetson.md"


def test_every_block_is_run_or_left_out_with_its_reason(tmp_path: Path) -> None:
    blocks.main(PAGE, tmp_path)
    run = sorted(tmp_path.glob("*.sh"))
    left_out = (tmp_path / "left-out").read_text().splitlines()
    assert len(run) + len(left_out) == len(page_blocks(PAGE, "sh"))
    assert len(left_out) <= 5
    assert all(": " in line for line in left_out)
    assert [path.stem.split("-")[1] for path in run] == ["workstation", *["board"] * (len(run) - 2), "workstation"]
    assert [path.read_text() for path in tmp_path.glob("*.refused")] == ["tensorrt is not installed"]


def test_the_script_is_shell() -> None:
    subprocess.run(["bash", "-n", ROOT / "boards/rehearse.sh"], check=True)
