"""Give a trained decoder with full attention a memory of fixed size, and train it to do without the rest.

The decoder is an edgemem checkpoint whose only memory is ``full``. Its weights are copied into a decoder with sinks, a
window and perhaps a summary, whose slot means nothing yet. Then two short trainings follow, on your text:

1. attention transfer (LoLCATs, arXiv 2410.10254): each attention layer learns to give what the teacher's gives for the
   same input;
2. fine-tuning of the whole: the decoder learns to predict what the teacher predicts.

::

    python benchmarks/evidence/sinks.py --seeds 1 --models demo/sinks
    python examples/distil.py demo/sinks/teacher-0 --memory sinks=4,window=10,summary=cumulative --out demo/distilled
    edgemem export demo/distilled --out demo/distilled-bundle
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from text import bits_per_byte, load_text
from torch import Tensor, nn
from training import Batch, train

from edgemem.decoder_config import MemorySpec
from edgemem.errors import ConfigError, EdgememError
from edgemem.export.hf.bound import MemoryBound
from edgemem.memories import Clock
from edgemem.models import Decoder, load_checkpoint, save_checkpoint

_BATCH = 4
_HELD_OUT = 0.08
FULL: list[MemorySpec] = [{"type": "full"}]


def memory_list(bound: MemoryBound) -> list[MemorySpec]:
    """The memories that ``--memory`` names, as a configuration lists them."""
    if bound.positions != "slot":
        raise ConfigError("a decoder's sinks have positions by slot: leave positions=absolute out.")
    memory: list[MemorySpec] = [{"type": "sinks", "slots": bound.sinks}] * bool(bound.sinks)
    memory.append({"type": "window", "window": bound.window})
    return memory + [{"type": bound.summary}] * (bound.summary is not None)


def bounded(teacher: Decoder, bound: MemoryBound) -> Decoder:
    """The teacher's weights in a decoder with the bound's memories; what is new there is as it starts.

    Raises:
        ConfigError: The teacher has another memory than ``full``.
    """
    if any(memory != FULL for memory in teacher.config.layer_memories()):
        raise ConfigError('distil needs a decoder with full attention: "memory": [{"type": "full"}].')
    student = Decoder(replace(teacher.config, memory=memory_list(bound)))
    missing, _ = student.load_state_dict(teacher.state_dict(), strict=False)
    assert all(".memories." in name for name in missing)
    return student


class Attentions(nn.Module):
    """All attention layers of a decoder, each called with its own input."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer.get_submodule("attention") for layer in model.layers)

    def forward(self, inputs: Tensor) -> tuple[Tensor, None]:
        """``[L, B, T, C]``, one entry for each layer, to what the layers give, of the same shape."""
        layers, batch, time, _ = inputs.shape
        clock = Clock(torch.zeros(batch, dtype=torch.int64), time)
        return torch.stack([self.layers[n](inputs[n], clock, None)[0] for n in range(layers)]), None


@torch.no_grad()
def watched(teacher: Decoder, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each attention layer takes and gives ``[L, B, T, C]``, and the logits ``[B, T, V]``."""
    seen: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.get_submodule("attention").register_forward_hook(lambda _, given, made: seen.append((given[0], made[0])))
        for layer in teacher.layers
    ]
    logits: Tensor = teacher(tokens)[0]
    for hook in hooks:
        hook.remove()
    return torch.stack([given for given, _ in seen]), torch.stack([made for _, made in seen]), logits


def relative_error(made: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the layers ``[L, B, T, C]`` of the squared error, as a share of the layer's mean square."""
    return ((made - wanted).square().mean((1, 2, 3)) / wanted.square().mean((1, 2, 3))).mean()


def divergence(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean KL divergence from the teacher's predictions, of logits ``[B, T, V]``, in nats."""
    logs = logits.flatten(0, 1).log_softmax(-1)
    return F.kl_div(logs, wanted.flatten(0, 1).log_softmax(-1), log_target=True, reduction="batchmean")


def distil(
    teacher: Decoder,
    student: Decoder,
    text: Tensor,
    evaluate: Callable[[nn.Module], float],
    *,
    length: int,
    transfer: int,
    tune: int,
    seed: int = 0,
) -> float:
    """Train the student in place.

    Args:
        teacher: The decoder with full attention.
        student: What :func:`bounded` gives.
        text: Tokens, int64 ``[N]``.
        evaluate: The student's figure on held-out text.
        length: Tokens of a stretch: the length with which the teacher was trained, or less.
        transfer: Steps of attention transfer.
        tune: Steps of fine-tuning.
        seed: Of the order of the text.

    Returns:
        The figure at the end.
    """

    def stretches(generator: torch.Generator) -> Tensor:
        starts = torch.randint(len(text) - length, (_BATCH,), generator=generator).tolist()
        return torch.stack([text[at : at + length] for at in starts])

    def layers(generator: torch.Generator) -> Batch:
        taken, given, _ = watched(teacher, stretches(generator))
        return taken, given

    def predictions(generator: torch.Generator) -> Batch:
        tokens = stretches(generator)
        return tokens, watched(teacher, tokens)[2]

    figure = float("nan")
    run = partial(train, metric="bits per byte", item="tokens", seed=seed, evaluations=1)
    if transfer:
        whole = Attentions(student)
        figure = run(whole, layers, relative_error, lambda _: evaluate(student), name="transfer", steps=transfer)
    if tune:
        figure = run(student, predictions, divergence, evaluate, name="tune", steps=tune, learning_rate=1e-3)
    student.eval()
    return figure


def read_text(path: Path | None) -> tuple[Tensor, Tensor]:
    """Training bytes and held-out bytes, int64 ``[N]``: of a file its end is held out."""
    if path is None:
        return load_text()
    data = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()
    cut = int(len(data) * (1 - _HELD_OUT))
    return data[:cut], data[cut:]


@click.command(context_settings={"show_default": True})
@click.argument("teacher", type=click.Path(path_type=Path, exists=True))
@click.option("--memory", default="sinks=4,window=10,summary=cumulative", help="As for edgemem export.")
@click.option("--text", type=click.Path(path_type=Path, exists=True), help="A text file; else Python's documentation.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo/distilled"), help="Checkpoint to write.")
@click.option("--length", type=click.IntRange(min=8), default=256, help="Tokens of a stretch: the teacher's length.")
@click.option("--transfer", type=click.IntRange(min=0), default=100, help="Steps of attention transfer.")
@click.option("--tune", type=click.IntRange(min=0), default=200, help="Steps of fine-tuning.")
@click.option("--seed", type=int, default=0, help="Seed of the order of the text.")
def main(
    teacher: Path, memory: str, text: Path | None, out: Path, length: int, transfer: int, tune: int, seed: int
) -> None:
    """Distil a byte-level decoder with full attention into one with a memory of fixed size."""
    try:
        full = load_checkpoint(teacher)
        if full.config.tokenizer != "bytes":
            raise ConfigError(f"{teacher} does not read bytes: this example encodes no other tokens.")
        student = bounded(full, MemoryBound.parse(memory))
        trained_on, held_out = read_text(text)
        if len(held_out) <= 8 or len(trained_on) <= length:
            raise ConfigError(f"the text has {len(trained_on) + len(held_out):,} bytes: too few to train on.")
    except EdgememError as error:
        raise click.ClickException(str(error)) from error

    def evaluate(model: nn.Module) -> float:
        with torch.inference_mode():
            return bits_per_byte(model, held_out, length)

    click.echo(f"teacher: {evaluate(full):.3f} bits per byte; before: {evaluate(student.eval()):.3f}")
    figure = distil(full, student, trained_on, evaluate, length=length, transfer=transfer, tune=tune, seed=seed)
    save_checkpoint(student, out)
    click.echo(f"after: {figure:.3f} bits per byte with {student.contract().state_bytes:,} bytes of state: {out}")


if __name__ == "__main__":
    main()
