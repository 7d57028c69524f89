"""How the examples run the command line."""

from __future__ import annotations

import subprocess
from pathlib import Path

import commands
import pytest


def test_the_command_line_is_shown_and_its_output_goes_to_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    empty, version = tmp_path / "an empty file", tmp_path / "version"
    empty.touch()
    commands.edgemem_command("--version", stdin=empty, stdout=version, variables={"PYTHONPATH": "examples"})
    assert capfd.readouterr().out == f"$ PYTHONPATH=examples edgemem --version < '{empty}' > {version}\n"
    assert "edgemem" in version.read_text()


def test_a_command_that_fails_ends_the_example(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        commands.edgemem_command("inspect", tmp_path / "nowhere")
    assert "nowhere" in capfd.readouterr().err
