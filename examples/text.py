"""Train a small byte-level language model on Python's own documentation, in a few minutes.

Every machine with Python has the text: the language reference in ``pydoc_data.topics``. The model reads bytes. Its
memory has a fixed size: a window, attention sinks, and the average of everything so far::

    python examples/text.py --out demo/text
    edgemem export demo/text --out demo/text-bundle
    edgemem run demo/text-bundle --prompt "The import statement"

``--compare`` also trains a model with a longer window alone that takes as many bytes, and prints both figures. They are
close: the next byte of such a text mostly depends on recent bytes, which both models see.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics

import click
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from training import Batch, train

from edgemem.decoder_config import MemorySpec
from edgemem.models import Decoder, DecoderConfig, save_checkpoint

HYBRID: list[MemorySpec] = [
    {"type": "sinks", "slots": 4},
    {"type": "window", "window": 64},
    {"type": "cumulative"},
]

_HELD_OUT_SHARE = 0.08
_STRETCH = 256
_BATCH = 4


def split_topics() -> tuple[list[str], list[str]]:
    """Names of the training topics and of the held-out topics. Every call returns the same."""
    names = sorted(topics)
    random.Random(0).shuffle(names)
    room = _HELD_OUT_SHARE * sum(map(len, topics.values()))
    held_out = []
    for name in names:
        if len(topics[name]) <= room:
            held_out.append(name)
            room -= len(topics[name])
    return sorted(set(names) - set(held_out)), sorted(held_out)


def load_text() -> tuple[Tensor, Tensor]:
    """The training bytes and the held-out bytes, int64 ``[N]`` each.

    Topics quote each other. A paragraph is kept only the first time it appears, and held-out topics are read first.
    So no held-out paragraph is also trained on.
    """
    seen: set[str] = set()

    def new_paragraphs(names: Iterable[str]) -> Tensor:
        kept = []
        for name in names:
            for paragraph in topics[name].split("\n\n"):
                if paragraph.strip() not in seen:
                    seen.add(paragraph.strip())
                    kept.append(paragraph)
        return torch.frombuffer(bytearray("\n\n".join(kept).encode()), dtype=torch.uint8).long()

    trained, held_out = split_topics()
    scored = new_paragraphs(held_out)
    return new_paragraphs(trained), scored


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all time steps of logits ``[B, T, V]`` and targets ``[B, T]``, in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def bits_per_byte(model: nn.Module, text: Tensor, length: int = 1024) -> float:
    """Bits that the model needs for a byte of ``text``, in stretches of ``length`` that start with an empty memory."""
    length = min(length, len(text) - 1)
    stretches = text[: len(text) // (length + 1) * (length + 1)].reshape(-1, length + 1)
    nats = sum(
        float(cross_entropy(model(part[:, :-1])[0], part[:, 1:])) * len(part) for part in torch.split(stretches, _BATCH)
    )
    return nats / len(stretches) / math.log(2)


def make_model(memory: list[MemorySpec], seed: int) -> Decoder:
    """A decoder with about 0.6 million parameters and random weights."""
    torch.manual_seed(seed)
    return Decoder(
        DecoderConfig(
            d_model=128,
            layers=3,
            heads=4,
            memory=memory,
            vocab_size=256,
            tokenizer="bytes",
            input_meaning="UTF-8 bytes of Python's documentation",
        )
    )


def window_alone(seed: int) -> Decoder:
    """The same model with a longer window alone that takes as many bytes as :data:`HYBRID`."""
    total, one = (make_model(m, seed).contract().state_bytes for m in (HYBRID, [{"type": "window", "window": 1}]))
    return make_model([{"type": "window", "window": total // one}], seed)


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo/text"), help="Checkpoint folder to write.")
@click.option("--steps", type=click.IntRange(min=1), default=900, help="Training steps.")
@click.option("--seed", type=int, default=0, help="Seed of the weights and of the order of the text.")
@click.option("--compare", is_flag=True, help="Also train the same model with a window alone.")
def main(out: Path, steps: int, seed: int, compare: bool) -> None:
    """Train a small language model on Python's documentation and write a checkpoint."""
    text, held_out = load_text()
    models = {"window, sinks and summary": make_model(HYBRID, seed)}
    if compare:
        models["window alone"] = window_alone(seed)

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(text) - _STRETCH, (_BATCH,), generator=generator).tolist()
        stretches = torch.stack([text[at : at + _STRETCH + 1] for at in starts])
        return stretches[:, :-1], stretches[:, 1:]

    for name, model in models.items():
        parameters = sum(parameter.numel() for parameter in model.parameters())
        figure = train(
            model,
            draw,
            cross_entropy,
            lambda trained: bits_per_byte(trained, held_out),
            name=name,
            metric="bits per byte",
            item="bytes",
            steps=steps,
            seed=seed,
        )
        click.echo(
            f"{name}: {parameters:,} parameters, {model.contract().state_bytes:,} bytes of state, "
            f"{figure:.3f} bits per byte on held-out text"
        )
    save_checkpoint(models["window, sinks and summary"], out)
    click.echo(f"Checkpoint: {out}")


if __name__ == "__main__":
    main()
