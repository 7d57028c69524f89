"""The examples are scripts: their folder is first on the path, as when Python runs one of them."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgemem.cli import main

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture
def in_examples(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in the folder of the examples."""
    monkeypatch.chdir(EXAMPLES)
    return EXAMPLES


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the command lines of the examples in this process. Starting each with torch takes seconds."""

    def edgemem_command(
        *arguments: str | Path,
        stdin: Path | None = None,
        stdout: Path | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        for name, value in (variables or {}).items():
            monkeypatch.setenv(name, value)
        source = stdin.read_bytes() if stdin else None
        result = CliRunner().invoke(main, [str(argument) for argument in arguments], input=source)
        assert result.exit_code == 0, result.output
        if stdout:
            stdout.write_text(result.stdout)

    import beats
    import denoise
    import sensor
    import vad

    for module in (beats, denoise, sensor, vad):
        monkeypatch.setattr(module, "edgemem_command", edgemem_command)
