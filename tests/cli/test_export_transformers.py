"""``--memory`` and ``--max-length`` of ``edgemem export``, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.families import tiny_model

from .conftest import edgemem


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama", num_hidden_layers=1).save_pretrained(folder)  # type: ignore[operator]
    return folder


def test_a_growing_cache_is_refused_with_both_ways_out(checkpoint: Path) -> None:
    result = edgemem("export", checkpoint, "--out", checkpoint / "bundle")
    assert result.exit_code == 1
    assert "a cache that grows without limit in 1 of its layers" in result.stderr
    assert "--memory" in result.stderr
    assert "--max-length" in result.stderr
    assert not (checkpoint / "bundle").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--memory", "sinks=4"], "has no window"),
        (["--memory", "window=8", "--max-length", "9"], "exclude each other"),
        (["--max-length", "0"], "not in the range"),
    ],
)
def test_options_that_cannot_be_are_usage_errors(checkpoint: Path, options: list[str], said: str) -> None:
    result = edgemem("export", checkpoint, "--out", checkpoint / "bundle", *options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_memory_is_no_option_of_other_sources(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    result = edgemem("export", tmp_path / "config.json", "--out", tmp_path / "bundle", "--memory", "window=8")
    assert result.exit_code == 1
    assert "is not a transformers folder" in result.stderr


def test_a_bounded_model_is_exported_inspected_and_checked_again(checkpoint: Path) -> None:
    out = checkpoint / "bundle"
    exported = edgemem("export", checkpoint, "--out", out, "--memory", "sinks=1,window=6", "--steps", 16, "--json")
    assert exported.exit_code == 0, exported.stderr
    assert json.loads(exported.stdout)["source"]["options"] == {"memory": "sinks=1,window=6,positions=slot"}
    shown = edgemem("inspect", out)
    assert "--memory sinks=1,window=6,positions=slot" in " ".join(shown.stdout.split())
    # The memory is the bundle's: nobody has to say it again.
    checked = edgemem("check", out, "--against", checkpoint, "--steps", 12)
    assert checked.exit_code == 0, checked.stderr
