"""Reduced precision on the command line: asked for, shown, and scored on a text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemem.models import DecoderConfig

from .conftest import edgemem

CONFIG = DecoderConfig(
    d_model=32, layers=1, heads=2, vocab_size=256, tokenizer="bytes", memory=[{"type": "window", "window": 4}]
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("precision") / "config.json"
    path.write_text(json.dumps(CONFIG.to_json()))
    return path


@pytest.fixture(scope="module")
def bundle(config: Path) -> Path:
    out = config.parent / "bundle"
    arguments = ("--dtype", "fp16", "--weights", "int4", "--block-size", "16")
    result = edgemem("export", config, "--out", out, "--steps", 12, *arguments)
    assert result.exit_code == 0, result.stderr
    assert "float16, 5 matrices as int4 in blocks of 16." in result.stdout
    assert "against the float32 model" in result.stdout
    return out


def test_inspect_shows_the_precision(bundle: Path) -> None:
    assert "5 matrices as int4 in blocks of 16" in " ".join(edgemem("inspect", bundle).stdout.split())
    shown = json.loads(edgemem("inspect", bundle, "--json").stdout)["precision"]
    assert (shown["dtype"], shown["weights"], shown["block_size"]) == ("float16", "int4", 16)
    assert len(shown["matrices"]) == 5


def test_a_check_scores_a_text_beside_the_source(bundle: Path, config: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("To be, or not to be: that is the question.")
    result = edgemem("check", bundle, "--against", config, "--text", text, "--steps", 8, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    scores = report["text"]
    assert report["change"] > 0
    assert scores["tokens"] == scores["bytes"] == 41
    assert 7 < scores["source"]["bits_per_byte"] < 9, "random weights know nothing"
    assert scores["change"] == pytest.approx(scores["bits_per_byte"] / scores["source"]["bits_per_byte"] - 1)
    assert 0 < abs(scores["change"]) < 0.03
    result = edgemem("check", bundle, "--text", text, "--steps", 8)
    assert "bits per byte" in result.stdout
    assert "bits per token" not in result.stdout, "a token is a byte"
    assert "against the float32 model" not in result.stdout, "there was none"


def test_a_block_size_without_quantised_weights_is_a_usage_error(config: Path, tmp_path: Path) -> None:
    result = edgemem("export", config, "--out", tmp_path / "out", "--block-size", "16")
    assert result.exit_code == 2
    assert "--block-size goes with --weights" in result.stderr
