"""A checkpoint is written whole or not at all, and read back bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from edgemem.errors import ConfigError, EdgememError
from edgemem.models import Decoder, DecoderConfig, load_checkpoint, save_checkpoint
from edgemem.models.checkpoint import TEXT_FILES


def make(**changes: Any) -> Decoder:
    memory = [{"type": "window", "window": 4}, {"type": "weighted_average", "window": 3, "beta": [3.0, 2.0, 1.0]}]
    fields: dict[str, Any] = {"d_model": 8, "layers": 1, "heads": 2, "memory": memory, "vocab_size": 5}
    return Decoder(DecoderConfig(**{**fields, **changes}))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(make(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, {"vocab_size": None, "features": 2, "outputs": 3}])
def test_what_is_saved_is_read_back_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = make(**changes)
    save_checkpoint(model, tmp_path / "a" / "b")
    again = load_checkpoint(tmp_path / "a" / "b")
    assert again.config == model.config
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_checkpoint_holds_json_and_safetensors_and_nothing_executable(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((saved / "config.json").read_text())["format"] == "edgemem.decoder"


def test_saving_again_replaces_the_old_weights_and_keeps_what_says_how_to_read_text(saved: Path) -> None:
    for name in TEXT_FILES:
        (saved / name).write_text(name)
    other = make(d_model=16)
    save_checkpoint(other, saved)
    assert torch.equal(load_checkpoint(saved).embedding, other.embedding)
    assert all((saved / name).read_text() == name for name in TEXT_FILES)
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"], "nothing is left beside it"


def test_an_empty_folder_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save_checkpoint(make(), tmp_path / "empty")
    load_checkpoint(tmp_path / "empty")


@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": "mine"},
        {"config.json": '{"model_type": "llama"}', "model.safetensors": "mine"},
        {"config.json": "{"},
    ],
)
def test_a_folder_that_is_something_else_is_left_as_it_is(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    before = files_of(tmp_path)
    with pytest.raises(EdgememError, match="not a checkpoint"):
        save_checkpoint(make(), tmp_path)
    assert files_of(tmp_path) == before


def test_a_file_in_the_way_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EdgememError, match="file"):
            save_checkpoint(make(), target)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_leaves_the_old_checkpoint(saved: Path) -> None:
    before = files_of(saved)
    script = f"""
import resource
from edgemem.errors import EdgememError
from edgemem.models import Decoder, DecoderConfig, save_checkpoint
config = DecoderConfig(d_model=64, layers=1, heads=2, memory=[{{"type": "sinks"}}], vocab_size=5)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # no file may grow beyond: the disk is full
try:
    save_checkpoint(Decoder(config), {str(saved)!r})
except EdgememError as error:
    print("refused:", error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("refused:")
    assert "model.safetensors" in done.stdout
    assert files_of(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"], "nothing is left beside it"


def test_a_missing_folder_or_file_is_named(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(EdgememError, match=r"model\.safetensors"):
        load_checkpoint(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_are_refused(saved: Path, keep: int) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(EdgememError, match=r"model\.safetensors cannot be read"):
        load_checkpoint(saved)


def test_weights_that_are_a_pickle_are_refused_and_not_executed(saved: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"embedding": Trap()}, saved / "model.safetensors")
    with pytest.raises(EdgememError, match="cannot be read"):
        load_checkpoint(saved)
    assert not (tmp_path / "sprung").exists()


def test_weights_of_another_model_are_refused_with_the_first_names_they_lack(saved: Path) -> None:
    safetensors.torch.save_file({"wte.weight": torch.zeros(3)}, saved / "model.safetensors")
    with pytest.raises(ConfigError, match=r"has no embedding, .* …"):
        load_checkpoint(saved)


def test_weights_of_another_size_are_refused_with_both_shapes(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / "model.safetensors")
    tensors["embedding"] = torch.zeros(6, 8)
    safetensors.torch.save_file(tensors, saved / "model.safetensors")
    with pytest.raises(ConfigError, match=r"embedding has shape \[6, 8\], the configuration needs \[5, 8\]"):
        load_checkpoint(saved)
