"""The rehearsal of docs/jetson.md takes every block of the page, and the Dockerfile's lines can be run."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from boards import blocks, image
from tests.docs.pages import ROOT
from tests.docs.pages import blocks as page_blocks
from tests.handmade import write_summer

PAGE = ROOT / "docs/jetson.md"


def test_every_block_is_run_or_left_out_with_its_reason(tmp_path: Path) -> None:
    blocks.main(PAGE, tmp_path)
    run = sorted(tmp_path.glob("*.sh"))
    left_out = (tmp_path / "left-out").read_text().splitlines()
    assert len(run) + len(left_out) == len(page_blocks(PAGE, "sh"))
    assert len(left_out) <= 5
    assert all(": " in line for line in left_out)
    assert [path.stem.split("-")[1] for path in run] == [
        "workstation",
        *["board"] * (len(run) - 3),
        "workstation",
        "board",
    ]
    assert [path.read_text() for path in tmp_path.glob("*.refused")] == ["tensorrt is not installed"]


def test_the_script_is_shell() -> None:
    subprocess.run(["bash", "-n", ROOT / "boards/rehearse.sh"], check=True)


def test_the_lines_of_the_dockerfile_are_shell_and_its_targets_are_built_of_its_own_stages() -> None:
    found = image.stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert {"cpu", "gpu", "jetson"} <= set(found)
    for name, stage in found.items():
        runs = [rest for word, rest in stage.lines if word == "RUN"]
        assert subprocess.run(["sh", "-n"], input="\n".join(runs), text=True).returncode == 0, name
        copied = [re.match(r"--from=(\S+)", rest) for word, rest in stage.lines if word == "COPY"]
        assert {match[1] for match in copied if match} < set(found), name


def test_every_image_installs_the_pinned_versions_with_the_extra_for_pages() -> None:
    for name, stage in image.stages((ROOT / "Dockerfile").read_text(encoding="utf-8")).items():
        for word, rest in stage.lines:
            if word == "RUN" and "pip install" in rest:
                assert "--constraint" in rest, name
                assert re.search(r"\.whl\)\[[\w,-]*report\]", rest), name


@pytest.mark.long
def test_the_cpu_image_is_built_line_by_line_and_writes_to_the_mounted_folder_of_any_user(tmp_path: Path) -> None:
    if os.geteuid() or shutil.which("mmdebstrap") is None:
        pytest.skip("only root can build it, with mmdebstrap")
    builder = image.Builder(tmp_path)
    mounted = builder.build("cpu") / "work"
    write_summer(mounted / "bundle")
    np.savetxt(mounted / "rows.csv", np.ones((5, 2)), delimiter=",")
    builder.run("cpu", ["run", "bundle", "rows.csv"])
    for path in (mounted, *mounted.rglob("*")):
        os.chown(path, 4321, 4321)
    builder.run("cpu", ["bench", "bundle", "--quick", "--html", "bench.html"], user="4321:4321")
    assert (mounted / "bench.html").stat().st_uid == 4321
