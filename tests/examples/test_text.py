"""What the text example reads, scores and writes."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from click.testing import CliRunner
from text import HYBRID, bits_per_byte, load_text, main, make_model, split_topics, window_alone
from torch import Tensor, nn

from edgemem.models import load_checkpoint


def as_text(data: Tensor) -> str:
    return bytes(data.tolist()).decode()


def test_every_topic_is_either_trained_on_or_held_out() -> None:
    trained, held_out = split_topics()
    assert sorted(trained + held_out) == sorted(topics)
    share = sum(len(topics[name]) for name in held_out) / sum(map(len, topics.values()))
    assert 0.06 < share <= 0.08


def test_no_held_out_paragraph_is_trained_on() -> None:
    text, held_out = map(as_text, load_text())
    paragraphs = {paragraph.strip() for paragraph in text.split("\n\n")}
    assert len(text) > 250_000
    assert len(held_out) > 25_000
    assert not paragraphs & {paragraph.strip() for paragraph in held_out.split("\n\n")}


def test_a_model_that_knows_nothing_needs_eight_bits_a_byte() -> None:
    class Uniform(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.zeros(*x.shape, 256), {}

    assert bits_per_byte(Uniform(), load_text()[1]) == pytest.approx(8)


def test_the_window_alone_takes_as_many_bytes_as_the_hybrid() -> None:
    assert window_alone(0).contract().state_bytes == make_model(HYBRID, 0).contract().state_bytes


def test_a_few_steps_write_a_checkpoint_that_has_learned_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, held_out = load_text()
    monkeypatch.setattr("text.load_text", lambda: (trained, held_out[:4000]))  # all 28,000 bytes take minutes to score
    folder = tmp_path / "text"
    result = CliRunner().invoke(main, ["--out", str(folder), "--steps", "8"], catch_exceptions=False)
    assert result.exit_code == 0
    assert str(folder) in result.output
    model = load_checkpoint(folder)
    assert model.config.tokenizer == "bytes"
    with torch.inference_mode():
        assert bits_per_byte(model, held_out[:4000]) < 7
