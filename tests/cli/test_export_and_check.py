"""``edgemem export`` and ``edgemem check`` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemem.models import DecoderConfig

from .conftest import edgemem

CONFIG = DecoderConfig(
    d_model=16,
    layers=1,
    heads=2,
    vocab_size=256,
    tokenizer="bytes",
    memory=[{"type": "window", "window": 4}, {"type": "cumulative"}],
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "config.json"
    path.write_text(json.dumps(CONFIG.to_json()))
    return path


@pytest.fixture(scope="module")
def bundle(config: Path) -> Path:
    out = config.parent / "bundle"
    result = edgemem("export", config, "--out", out, "--steps", 12, "--record", config.parent / "io.npz")
    assert result.exit_code == 0, result.stderr
    assert "Random weights" in result.stderr
    assert "all 4 states used and changing" in result.stdout
    return out


def test_a_bundle_is_checked_again_from_its_own_weights(bundle: Path) -> None:
    result = edgemem("check", bundle, "--json", "--steps", 20, "--seed", 3)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["steps"] == 20
    assert report["step_error"] <= report["tolerance"]


def test_a_recording_of_the_export_is_replayed(bundle: Path, config: Path) -> None:
    result = edgemem("check", bundle, "--recorded", config.parent / "io.npz", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["steps"] == 256
    assert all(0 < error <= report["tolerance"] for error in report["errors"].values())


def test_a_bundle_is_checked_against_a_source_that_is_named(bundle: Path, config: Path) -> None:
    assert edgemem("check", bundle, "--against", config, "--steps", 8).exit_code == 0
    twice = edgemem("check", bundle, "--against", config, "--against", config)
    assert twice.exit_code == 2
    assert "--against is named 2 times" in twice.stderr


def test_another_model_does_not_pass_for_the_source(bundle: Path) -> None:
    result = edgemem("check", bundle, "--against", "tests.export.modules:Gru")
    assert result.exit_code == 1
    assert "has other states" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_sealed_export_says_so_in_json(config: Path) -> None:
    result = edgemem("export", config, "--out", config.parent / "sealed", "--sealed", "--json", "--steps", 8)
    assert result.exit_code == 0, result.stderr
    states = json.loads(result.stdout)["contract"]["states"]
    assert {state["update"] for state in states} == {"replace"}
    assert "position" in [state["name"] for state in states]


def test_a_module_of_the_users_own_must_be_named_to_be_checked(tmp_path: Path) -> None:
    assert edgemem("export", "tests.export.modules:Gru", "--out", tmp_path / "gru", "--steps", 8).exit_code == 0
    result = edgemem("check", tmp_path / "gru")
    assert result.exit_code == 2
    assert "tests.export.modules:Gru" in result.stderr
    assert "--against" in result.stderr
    assert edgemem("check", tmp_path / "gru", "--against", "tests.export.modules:Gru", "--steps", 8).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["export", "nowhere", "--out", "OUT"], 1, "nowhere is not a checkpoint folder"),
        (["export", "CONFIG"], 2, "--out"),
        (["export", "CONFIG", "--out", "OUT", "--max-chunk", "0"], 2, "--max-chunk"),
        (["export", "CONFIG", "--out", "OUT", "--max-chunk", "99"], 1, "max_chunk must be from 1 to 4"),
        (["export", "CONFIG", "--out", "CONFIG/x"], 1, "cannot write"),
        (["export", "tests.export.modules:ForgetsState", "--out", "OUT"], 1, "forgot the state 0.gru.h"),
        (["check", "OUT"], 1, "is not a bundle"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_leaves_nothing(
    arguments: list[str], code: int, message: str, config: Path, tmp_path: Path
) -> None:
    names = {"CONFIG": str(config), "OUT": str(tmp_path / "out"), "CONFIG/x": str(config / "x")}
    result = edgemem(*(names.get(argument, argument) for argument in arguments))
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
