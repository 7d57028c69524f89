"""A decoder with full attention is distilled into one with a memory of fixed size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from distil import Attentions, bounded, distil, main, memory_list, read_text, watched
from text import cross_entropy

from edgemem.decoder_config import MemorySpec
from edgemem.errors import ConfigError
from edgemem.export.hf.bound import MemoryBound
from edgemem.models import Decoder, DecoderConfig, load_checkpoint, save_checkpoint

TEXT = b"the quick brown fox jumps over the lazy dog. " * 40
BOUND = MemoryBound(6, 2, "cumulative")


def teacher(memory: list[MemorySpec] | None = None, tokenizer: str | None = "bytes") -> Decoder:
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(16, 2, 2, memory or [{"type": "full"}], vocab_size=256, tokenizer=tokenizer))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model.eval()


def test_the_memory_is_spelled_as_for_export() -> None:
    assert memory_list(MemoryBound.parse("sinks=4,window=10,summary=cumulative")) == [
        {"type": "sinks", "slots": 4},
        {"type": "window", "window": 10},
        {"type": "cumulative"},
    ]
    assert memory_list(MemoryBound(5)) == [{"type": "window", "window": 5}]
    with pytest.raises(ConfigError, match="positions by slot"):
        memory_list(MemoryBound(5, 1, positions="absolute"))


def test_a_student_starts_with_the_teachers_weights_and_gives_the_same_while_all_fits_the_window() -> None:
    full, x = teacher(), torch.arange(8)[None]
    student = bounded(full, MemoryBound(8, 2))
    with torch.no_grad():
        assert torch.allclose(student(x)[0], full(x)[0], atol=1e-5)
        assert not torch.allclose(student(x.repeat(1, 3))[0], full(x.repeat(1, 3))[0], atol=1e-3)
    with pytest.raises(ConfigError, match="full attention"):
        bounded(teacher([{"type": "window", "window": 4}]), BOUND)


def test_transfer_is_given_what_the_teachers_layers_take_and_give() -> None:
    full = teacher()
    taken, given, logits = watched(full, torch.arange(12)[None])
    assert taken.shape == given.shape == (2, 1, 12, 16)
    with torch.no_grad():
        assert torch.allclose(Attentions(full)(taken)[0], given, atol=1e-6)
        assert torch.equal(full(torch.arange(12)[None])[0], logits)


def test_each_of_the_two_trainings_brings_the_student_nearer_to_its_teacher() -> None:
    full, tokens = teacher(), torch.frombuffer(bytearray(TEXT), dtype=torch.uint8).long()
    sample = tokens[None, :96]

    def distance(student: Decoder) -> float:
        with torch.no_grad():
            logs, wanted = (model(sample)[0].log_softmax(-1) for model in (student, full))
            return float((wanted.exp() * (wanted - logs)).sum(-1).mean())

    for transfer, tune in ((25, 0), (0, 25)):
        student = bounded(full, BOUND)
        before = distance(student)
        distil(full, student, tokens, lambda _: 0.0, length=48, transfer=transfer, tune=tune)
        assert distance(student) < 0.8 * before


def test_the_command_writes_a_checkpoint_and_says_what_it_reached(tmp_path: Path) -> None:
    save_checkpoint(teacher(), tmp_path / "teacher")
    (tmp_path / "text.txt").write_bytes(TEXT)
    arguments = [str(tmp_path / "teacher"), "--text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "student")]
    steps = ["--memory", str(BOUND), "--length", "32", "--transfer", "2", "--tune", "2"]
    result = CliRunner().invoke(main, [*arguments, *steps], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    student = load_checkpoint(tmp_path / "student")
    assert student.contract().has_fixed_size
    assert f"{student.contract().state_bytes:,} bytes of state" in result.output
    held_out = read_text(tmp_path / "text.txt")[1]
    with torch.no_grad():
        assert float(cross_entropy(student(held_out[None, :-1])[0], held_out[None, 1:])) > 0


@pytest.mark.parametrize(
    ("model", "text", "said"),
    [
        (teacher([{"type": "window", "window": 4}]), TEXT, "full attention"),
        (teacher(tokenizer=None), TEXT, "does not read bytes"),
        (teacher(), b"short", "too few to train on"),
    ],
)
def test_what_cannot_be_distilled_is_refused(model: Decoder, text: bytes, said: str, tmp_path: Path) -> None:
    save_checkpoint(model, tmp_path / "teacher")
    (tmp_path / "text.txt").write_bytes(text)
    result = CliRunner().invoke(main, [str(tmp_path / "teacher"), "--text", str(tmp_path / "text.txt")])
    assert result.exit_code == 1
    assert said in result.output
