"""``edgemem run --prefix``: the beginning of every text is computed once, and restored the next time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.handmade import RECITED
from tests.text import chat_templates

from .test_run_chat import EVERY_REPLY, GREEDY, REPLIES, USER, lines, write_talker


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    path = tmp_path / "prefix.txt"
    path.write_text(RECITED[:10], encoding="utf-8")
    return path


def test_a_prefix_is_computed_once(reciter: Path, invoke: Any, prefix: Path, tmp_path: Path) -> None:
    said, figures = [], []
    whole = ("--prompt", RECITED[:12], *GREEDY, "--max-tokens", 6)
    parts = ("--prefix", prefix, "--prefix-dir", tmp_path / "kept", "--prompt", RECITED[10:12], *whole[2:])
    for arguments in (whole, parts, parts):
        result = invoke("run", reciter, *arguments)
        assert result.exit_code == 0, result.stderr
        said.append(result.stdout)
        figures.append(result.stderr)
    assert said[0] == said[1] == said[2]
    assert "prefix" not in figures[0]
    assert "tokens, computed in" in figures[1]
    assert "tokens, restored in" in figures[2]
    found = json.loads(invoke("run", reciter, *parts, "--json").stdout)
    assert found["position"] == found["prefix_tokens"] + found["prompt_tokens"] + found["tokens"] - 1


def test_a_prefix_of_ids(id_reciter: Path, invoke: Any, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("116 104")
    kept = ("--prefix", tmp_path / "ids", "--prefix-dir", tmp_path / "kept")
    result = invoke("run", id_reciter, *kept, "--prompt-ids", "97", *GREEDY, "--max-tokens", 2)
    assert "prefix 2 tokens, computed" in result.stderr
    assert result.stdout == invoke("run", id_reciter, "--prompt-ids", "116,104,97", *GREEDY, "--max-tokens", 2).stdout


def test_a_state_that_goes_on_has_read_the_prefix(reciter: Path, invoke: Any, prefix: Path, tmp_path: Path) -> None:
    kept = ("--prefix", prefix, "--prefix-dir", tmp_path / "kept", "--state", tmp_path / "state")
    first = invoke("run", reciter, *kept, "--prompt", RECITED[10:12], *GREEDY, "--max-tokens", 4)
    again = invoke("run", reciter, *kept, *GREEDY, "--max-tokens", 4)
    assert "prefix" in first.stderr
    assert "prefix" not in again.stderr
    whole = invoke("run", reciter, "--prompt", RECITED[:12], *GREEDY, "--max-tokens", 8)
    assert first.stdout[:-1] + again.stdout == whole.stdout


def test_with_chat_the_prefix_is_the_system_message(invoke: Any, tmp_path: Path) -> None:
    talker = write_talker(tmp_path / "talker", chat_templates.CHATML, "Say tea.")
    (tmp_path / "system.txt").write_text("Say tea.\n")
    kept = ("--prefix", tmp_path / "system.txt", "--prefix-dir", tmp_path / "kept")
    for how in ("computed", "restored"):
        result = invoke("run", talker, "--chat", *kept, *GREEDY, input=lines(*USER))
        assert result.stdout == EVERY_REPLY
        assert result.stderr.count(f"tokens, {how} in") == 1
    result = invoke("run", talker, "--chat", *kept, *GREEDY, input=lines(USER[0], "/reset", USER[0]))
    assert result.stdout == f"{REPLIES[0]}\n" * 2
    assert result.stderr.count("tokens, restored in") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--prefix-dir", "kept"), "needs --prefix"),
        (("--prefix", "prefix.txt", "--resume", "prefix.txt"), "in the middle of one"),
        (("--chat", "--prefix", "prefix.txt", "--system", "Hi"), "without --system"),
        (("--prefix", "nothing.txt"), "does not exist"),
    ],
)
def test_wrong_usage_exits_with_2(
    invoke: Any, tmp_path: Path, prefix: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    talker = write_talker(tmp_path / "talker", chat_templates.CHATML)
    monkeypatch.chdir(tmp_path)
    result = invoke("run", talker, *arguments, input="")
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_an_empty_prefix_and_one_for_features_are_errors(
    reciter: Path, summer: Path, invoke: Any, prefix: Path, tmp_path: Path
) -> None:
    result = invoke("run", summer, "--prefix", prefix)
    assert result.exit_code == 2
    assert "--prefix is for models of tokens" in result.stderr
    (tmp_path / "empty").write_text("\n")
    result = invoke("run", reciter, "--prefix", tmp_path / "empty", "--prompt", "t")
    assert result.exit_code == 1
    assert "is empty" in result.stderr
