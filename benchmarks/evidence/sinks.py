"""Does a small decoder collapse when its first tokens leave the window, as large ones do? And can it be distilled?

``python benchmarks/evidence/sinks.py`` trains a byte-level decoder with full attention on Python's documentation for
each seed. Then

- it gives the trained weights 0 to 8 sinks and a window at equal slots, exports each, and streams held-out text through
  the bundle, eight times as far as the decoder was trained (StreamingLLM's question);
- it distils the decoder into sinks, a window and a summary (``examples/distil.py``) at 1/16 of its cache, and streams
  held-out text through the bundle, as far as the decoder was trained.

The results are in ``sinks.json``, and tables are printed. What is in the file is not run again. A checkpoint that is in
``--models`` is not trained again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "examples"))

from distil import FULL, bounded, distil  # noqa: E402
from text import bits_per_byte, cross_entropy, load_text  # noqa: E402
from training import Batch, train  # noqa: E402

import edgemem  # noqa: E402
from edgemem.export import ExportOptions, export_bundle, from_module  # noqa: E402
from edgemem.export.hf.bound import MemoryBound  # noqa: E402
from edgemem.files import write_atomic  # noqa: E402
from edgemem.models import Decoder, DecoderConfig, load_checkpoint, save_checkpoint  # noqa: E402

TRAINED_LENGTH = 256
STREAMED_LENGTH = 2048
SLOTS = TRAINED_LENGTH // 16
SINKS = (0, 1, 2, 4, 8)
SINK_ROWS = ("full", *(f"sinks={sinks}" for sinks in SINKS))
DISTILLED_ROWS = ("teacher", "before", "without summary", "after")
_BATCH = 4
_RESULTS = HERE / "sinks.json"
_TRANSFER = 100

Array = NDArray[Any]
Results = dict[str, dict[str, dict[str, float]]]
"""By seed, then by model: bits per byte ``inside`` the trained length, and ``beyond`` it."""


def train_teacher(seed: int, steps: int) -> Decoder:
    """A decoder with full attention, trained on stretches of :data:`TRAINED_LENGTH` bytes from position 0."""
    text, held_out = load_text()
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(64, 2, 4, FULL, vocab_size=256, tokenizer="bytes"))

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(text) - TRAINED_LENGTH, (_BATCH,), generator=generator).tolist()
        stretches = torch.stack([text[at : at + TRAINED_LENGTH + 1] for at in starts])
        return stretches[:, :-1], stretches[:, 1:]

    train(
        model,
        draw,
        cross_entropy,
        lambda trained: bits_per_byte(trained, held_out, TRAINED_LENGTH),
        name=f"full attention, seed {seed}",
        metric="bits per byte",
        item="bytes",
        steps=steps,
        seed=seed,
    )
    return model


def scored(model: Decoder, text: Tensor, length: int) -> dict[str, float]:
    """Bits per byte through the model's bundle: streams of ``length`` bytes that each start with an empty memory."""
    rows = text[: len(text) // (length + 1) * (length + 1)].reshape(-1, length + 1).numpy()
    bits = np.empty((len(rows), length))
    with tempfile.TemporaryDirectory() as folder:
        # Not checked here: exports of these memories are checked by the tests.
        export_bundle(from_module(model.eval(), "sinks"), Path(folder) / "bundle", ExportOptions(verify=False))
        with edgemem.open(Path(folder) / "bundle", threads=1) as session:
            stream = session.stream(batch=len(rows))
            for start in range(0, length, session.max_time):
                stop = min(start + session.max_time, length)
                logits = stream.feed(rows[:, start:stop], outputs="all")
                assert logits is not None
                bits[:, start:stop] = costs(logits, rows[:, start + 1 : stop + 1])
    inside = bits[:, :TRAINED_LENGTH].mean()
    beyond = bits[:, TRAINED_LENGTH:]
    return {"inside": float(inside), **({"beyond": float(beyond.mean())} if beyond.size else {})}


def costs(logits: Array, targets: Array) -> Array:
    """Bits of ``targets`` [B, T] under ``logits`` [B, T, V]."""
    wide = logits.astype(np.float64)
    logs = np.log(np.exp(wide - wide.max(-1, keepdims=True)).sum(-1)) + wide.max(-1)
    bits: Array = (logs - np.take_along_axis(wide, targets[..., None], -1)[..., 0]) / np.log(2)
    return bits


def sink_models(teacher: Decoder) -> Iterator[tuple[str, Decoder]]:
    """The teacher's weights with sinks and a window of :data:`SLOTS` slots together."""
    for sinks in SINKS:
        yield f"sinks={sinks}", bounded(teacher, MemoryBound(SLOTS - sinks, sinks))


def distilled_models(teacher: Decoder, seed: int, tune: int) -> Iterator[tuple[str, Decoder]]:
    """Sinks and window, untrained and distilled, and a summary in place of two pairs of the window, distilled."""
    text, held_out = load_text()
    plain = MemoryBound(SLOTS - 4, 4)
    yield "before", bounded(teacher, plain)
    for name, bound in (("without summary", plain), ("after", MemoryBound(SLOTS - 6, 4, "cumulative"))):
        torch.manual_seed(seed)
        student = bounded(teacher, bound)

        def evaluate(model: nn.Module) -> float:
            return bits_per_byte(model, held_out[:4096], TRAINED_LENGTH)

        distil(teacher, student, text, evaluate, length=TRAINED_LENGTH, transfer=_TRANSFER, tune=tune, seed=seed)
        yield name, student


def run(teacher: Decoder, seed: int, results: Results, path: Path, part: str, tune: int) -> None:
    """Score what is missing of one seed and part, and write all to ``path`` as it comes."""
    held_out = load_text()[1]
    own = results.setdefault(str(seed), {})

    def add(name: str, model: Decoder, length: int) -> None:
        own[name] = scored(model, held_out, length)
        write_atomic(path, (json.dumps(results, indent=1) + "\n").encode())
        click.echo(f"seed {seed}, {name}: {own[name]}")

    if part == "sinks":
        for name, model in (("full", teacher), *sink_models(teacher)):
            if name not in own:
                add(name, model, STREAMED_LENGTH)
        return
    if not set(DISTILLED_ROWS) <= set(own):
        add("teacher", teacher, TRAINED_LENGTH)
        for name, model in distilled_models(teacher, seed, tune):
            add(name, model, TRAINED_LENGTH)


def mean_and_range(values: list[float]) -> str:
    """``2.345 (2.301 to 2.390)``."""
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def sink_table(seeds: list[dict[str, dict[str, float]]]) -> str:
    """Bits per byte in Markdown, mean and range over the seeds."""
    lines = [f"| slots | inside {TRAINED_LENGTH} bytes | from there to {STREAMED_LENGTH:,} |", "| --- | ---: | ---: |"]
    for name in SINK_ROWS:
        label = "full attention" if name == "full" else f"{name[6:]} sinks, window {SLOTS - int(name[6:])}"
        cells = [mean_and_range([seed[name][part] for seed in seeds]) for part in ("inside", "beyond")]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def distilled_table(seeds: list[dict[str, dict[str, float]]]) -> str:
    """Bits per byte, and the share of the gap between ``before`` and ``teacher`` that is closed."""
    lines = ["| model | bits per byte | share of the gap closed |", "| --- | ---: | ---: |"]
    for name in DISTILLED_ROWS:
        values = [seed[name]["inside"] for seed in seeds]
        ends = [(seed["before"]["inside"], seed["teacher"]["inside"]) for seed in seeds]
        shares = [(before - value) / (before - least) for value, (before, least) in zip(values, ends, strict=True)]
        lines.append(f"| {name} | {mean_and_range(values)} | {mean_and_range(shares)} |")
    return "\n".join(lines)


@click.command(context_settings={"show_default": True})
@click.option("--models", type=click.Path(path_type=Path), default=Path("demo/sinks"), help="Folder of checkpoints.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, help="Number of seeds, from 0.")
@click.option("--steps", type=click.IntRange(min=1), default=800, help="Training steps of the decoder.")
@click.option("--tune", type=click.IntRange(min=0), default=1000, help="Steps of fine-tuning of a distilled decoder.")
@click.option(
    "--results", "path", type=click.Path(path_type=Path), default=_RESULTS, help="Scores: what is there stays."
)
@click.option("--part", type=click.Choice(["train", "sinks", "distil"]), help="Only this part; else all.")
def main(models: Path, seeds: int, steps: int, tune: int, path: Path, part: str | None) -> None:
    """Train decoders with full attention, and stream text through them with memories of fixed size."""
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    for seed in range(seeds):
        folder = models / f"teacher-{seed}"
        if not folder.exists():
            save_checkpoint(train_teacher(seed, steps), folder)
        for each in ("sinks", "distil"):
            if part in (None, each):
                run(load_checkpoint(folder), seed, results, path, each, tune)
    for rows, table in ((SINK_ROWS, sink_table), (DISTILLED_ROWS, distilled_table)):
        if complete := [models for models in results.values() if set(rows) <= set(models)]:
            click.echo(f"{len(complete)} seeds:\n{table(complete)}\n")


if __name__ == "__main__":
    main()
