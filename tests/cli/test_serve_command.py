"""``edgemem serve`` reads its token before it listens, and says why it cannot."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("starlette")

from edgemem.cli import main
from tests.handmade import write_reciter


def served(folder: Path, token: Path) -> str:
    """What the command says; it must end with a failure."""
    done = CliRunner().invoke(main, ["serve", str(write_reciter(folder / "reciter")), "--token-file", str(token)])
    assert done.exit_code == 1, done.output
    return done.output


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "the token cannot be read from" in served(tmp_path, tmp_path / "pipe")


@pytest.mark.parametrize(("content", "said"), [(" \n", "holds no token"), ("x" * 5000, "at most 4,096 are allowed")])
def test_an_empty_and_a_huge_file_are_refused(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "token").write_text(content)
    assert said in served(tmp_path, tmp_path / "token").replace("\n", " ")


@pytest.mark.parametrize("host", ["\udcff\udc80", "256.256.256.256", "a" * 300])
def test_a_host_that_is_none_is_named(tmp_path: Path, host: str) -> None:
    done = CliRunner().invoke(main, ["serve", str(write_reciter(tmp_path / "reciter")), "--host", host])
    assert done.exit_code == 1
    assert "cannot listen on" in done.output
