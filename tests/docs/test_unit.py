"""The systemd units on the pages about streaming and serving."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("page", ["run.md", "serve.md"])
def test_systemd_accepts_the_unit(page: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    (unit,) = re.findall(r"```ini\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    path = tmp_path / "sensor.service"
    path.write_text(unit)
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
