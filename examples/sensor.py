"""Where the long past matters: a pulse sensor whose gain and offset nobody knows.

The signal is real: photoplethysmograms (the light that a fingertip lets through, which beats with the heart) that ship
with the package ``heartpy``, averaged to 25 samples a second. Every stretch of it is seen through a sensor of its own,
with a gain and an offset drawn anew, as fingers and sensors differ. The model reads the raw samples, one by one, and
predicts the next one **in units of the recording itself**: how many of its own spreads above its own mean so far.

A window of a third of a second cannot know that mean and that spread; the average of everything so far can help. So two
models are trained, alike but for what they carry: a window with a cumulative summary, and a window alone that is longer
by as many bytes. Both are scored on another time of the recording that they were trained on, and on another recording,
and the better one is exported and streamed, sample by sample, by ``edgemem run``::

    python examples/sensor.py --out demo/sensor

The errors are printed, whichever model wins. When this was written the summary won clearly, on both signals and with
both seeds that were tried (``--seeds 2``); a window that already sees several heartbeats leaves less for it to add.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import shlex
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from training import Batch, train

from edgemem.console import console, print_table
from edgemem.models import Decoder, DecoderConfig, save_checkpoint
from edgemem.models.config import MemorySpec

RATE_HZ = 25
SECONDS_TO_SETTLE = 2
"""Before that, a mean and a spread of the recording mean little: such predictions are neither trained nor scored."""

_RECORDED_HZ = 100
_SETTLE = SECONDS_TO_SETTLE * RATE_HZ
_TRAINED = 0.8  # of the training recording, from its start
_GAP = 10 * RATE_HZ
_STRETCH = 192
_SCORED_STRETCH = 512
_DRAWS = 4  # sensors that every scored stretch is seen through
_BATCH = 16
_WINDOW = 8

SUMMARY: list[MemorySpec] = [{"type": "window", "window": _WINDOW}, {"type": "cumulative", "bias": "log_count"}]


def load_recording(name: str) -> NDArray[np.float64]:
    """The last column of a CSV file that ships with heartpy, averaged to :data:`RATE_HZ` samples a second.

    (The recordings were made at 100 and 117 samples a second; both are averaged by four.)
    """
    # The package itself is not imported: only its files are of use here.
    spec = importlib.util.find_spec("heartpy")
    if spec is None or not spec.submodule_search_locations:
        raise click.ClickException('the recordings come with heartpy: pip install "edgemem[examples]"')
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    samples = np.array([float(row[-1]) for row in rows if len(row) > 1])
    each = _RECORDED_HZ // RATE_HZ
    averaged: NDArray[np.float64] = samples[: len(samples) // each * each].reshape(-1, each).mean(axis=1)
    return averaged


@dataclass(frozen=True)
class Signals:
    """What is trained on and what is held out; no sample is in two of them.

    Attributes:
        train: The first part of one person's recording.
        later: The last part of it, some seconds later.
        other: Another person's recording, by another sensor.
    """

    train: Tensor
    later: Tensor
    other: Tensor


def load_signals() -> Signals:
    """The recordings, as float64 ``[N]`` each."""
    long = torch.from_numpy(load_recording("data3.csv"))
    cut = round(_TRAINED * len(long))
    # In the first 40 seconds of the other recording the sensor is put on, and reads nothing but jolts and zeros.
    other = torch.from_numpy(load_recording("data2.csv"))[50 * RATE_HZ :]
    return Signals(long[:cut], long[cut + _GAP :], other)


def through_sensors(stretches: Tensor, generator: torch.Generator) -> Batch:
    """Each stretch as a sensor of its own would give it, and what is to be predicted.

    Args:
        stretches: ``[B, T + 1]``.
        generator: Draws the sensors.

    Returns:
        The samples ``[B, T, 1]``, and for each of them the next one, less the mean and over the spread of those so far
        ``[B, T, 1]``.
    """
    size = stretches.shape[0]
    gain = torch.exp(-math.log(10) * torch.rand(size, 1, generator=generator))  # 0.1 to 1
    offset = 2 * torch.rand(size, 1, generator=generator) - 1  # -1 to 1
    unit = (stretches - stretches.mean(dim=1, keepdim=True)) / stretches.std(dim=1, keepdim=True)
    samples = gain * unit + offset

    # Gain and offset fall out of the targets: they are the same for every sensor.
    count = torch.arange(1, unit.shape[1] + 1)
    mean = unit.cumsum(dim=1) / count
    variance = (unit.square().cumsum(dim=1) / count - mean.square()).clamp_min(1e-4)
    targets = (unit[:, 1:] - mean[:, :-1]) / variance[:, :-1].sqrt()
    return samples[:, :-1, None].float(), targets[..., None].float()


def settled(values: Tensor) -> Tensor:
    """The time steps of ``[B, T, ...]`` that count."""
    return values[:, _SETTLE:]


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Huber's loss: a jolt of the finger does not outweigh a hundred heartbeats."""
    return F.smooth_l1_loss(settled(outputs), settled(targets))


def scored_batch(signal: Tensor) -> Batch:
    """A held-out signal in stretches, each seen through several sensors; the same at every call."""
    length = min(_SCORED_STRETCH, len(signal) - 1)
    count = len(signal) // (length + 1)
    stretches = signal[: count * (length + 1)].reshape(count, length + 1)
    return through_sensors(stretches.repeat(_DRAWS, 1), torch.Generator().manual_seed(1))


def rms_error(model: nn.Module, batch: Batch) -> float:
    """Root mean square error of the predictions, in spreads of the recording."""
    inputs, targets = batch
    errors = [settled(model(x)[0] - y) for x, y in zip(torch.split(inputs, 8), torch.split(targets, 8), strict=True)]
    return float(torch.cat(errors).square().mean().sqrt())


def make_config(memory: list[MemorySpec]) -> DecoderConfig:
    """The model, but for its memory."""
    return DecoderConfig(
        d_model=64,
        layers=2,
        heads=2,
        memory=memory,
        features=1,
        outputs=1,
        input_meaning=f"one raw sample of a pulse sensor of any gain and offset, {RATE_HZ} a second",
    )


def state_bytes(memory: list[MemorySpec]) -> int:
    """Bytes that one stream of the model carries."""
    return Decoder(make_config(memory)).contract().state_bytes


def window_alone() -> list[MemorySpec]:
    """A window that takes as many bytes as :data:`SUMMARY`."""
    return [{"type": "window", "window": state_bytes(SUMMARY) // state_bytes([{"type": "window", "window": 1}])}]


@dataclass(frozen=True)
class Trained:
    """A trained model and its errors.

    Attributes:
        model: The model.
        later: Its error on a later time of the training recording.
        other: Its error on the other recording.
    """

    model: Decoder
    later: float
    other: float


def fit(name: str, memory: list[MemorySpec], signals: Signals, steps: int, seed: int) -> Trained:
    """Train a model and score it."""
    torch.manual_seed(seed)
    model = Decoder(make_config(memory))
    later, other = scored_batch(signals.later), scored_batch(signals.other)

    def draw(generator: torch.Generator) -> Batch:
        starts = torch.randint(len(signals.train) - _STRETCH, (_BATCH,), generator=generator).tolist()
        return through_sensors(torch.stack([signals.train[at : at + _STRETCH + 1] for at in starts]), generator)

    error = train(
        model,
        draw,
        loss_of,
        lambda trained: rms_error(trained, later),
        name=name,
        metric="spreads off",
        item="samples",
        steps=steps,
        seed=seed,
        evaluations=3,
    )
    with torch.inference_mode():
        return Trained(model, error, rms_error(model, other))


def print_errors(results: dict[str, list[Trained]]) -> None:
    """One row for each memory; the mean over the seeds, and each seed's error where there are several."""
    rows = []
    for name, runs in results.items():
        row = [name, f"{runs[0].model.contract().state_bytes:,}"]
        for errors in ([run.later for run in runs], [run.other for run in runs]):
            each = f" ({', '.join(f'{error:.3f}' for error in errors)})" if len(errors) > 1 else ""
            row.append(f"{sum(errors) / len(errors):.3f}{each}")
        rows.append(row)
    title = "Held-out RMS error of the next sample, in spreads of the recording"
    columns = ("memory", "state bytes", "later in the recording", "another recording")
    print_table(console(), title, columns, rows, right=columns[1:])


def edgemem_command(*arguments: str | Path, stdout: Path | None = None) -> None:
    """Run the command line as a user would, and show how."""
    words = ["edgemem", *map(str, arguments)]
    click.echo(f"$ {shlex.join(words)}{f' > {stdout}' if stdout else ''}")
    words[0] = str(Path(sysconfig.get_path("scripts")) / "edgemem")
    if stdout is None:
        subprocess.run(words, check=True)
        return
    with stdout.open("w") as file:
        subprocess.run(words, check=True, stdout=file)


def stream(folder: Path, model: Decoder, signal: Tensor) -> float:
    """Export the model, and stream the signal through it sample by sample.

    Returns:
        The root mean square error of what came out.
    """
    save_checkpoint(model, folder / "checkpoint")
    samples, targets = through_sensors(signal[None], torch.Generator().manual_seed(1))
    np.savetxt(folder / "samples.csv", samples[0].numpy(), fmt="%.9g", header="sample", comments="")
    edgemem_command("export", folder / "checkpoint", "--out", folder / "bundle")
    edgemem_command("run", folder / "bundle", folder / "samples.csv", stdout=folder / "predictions.csv")
    predictions = torch.from_numpy(np.loadtxt(folder / "predictions.csv", dtype=np.float32))
    return float(settled(predictions[None, :, None] - targets).square().mean().sqrt())


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo/sensor"), help="Folder to write to.")
@click.option("--steps", type=click.IntRange(min=1), default=500, help="Training steps of each model.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, help="How often to train each model.")
def main(out: Path, steps: int, seeds: int) -> None:
    """Train with and without a summary at equal state bytes, compare, export the better, stream held-out samples."""
    signals = load_signals()
    memories = {"window with a summary": SUMMARY, "window alone": window_alone()}
    results: dict[str, list[Trained]] = {name: [] for name in memories}
    for seed in range(seeds):
        for name, memory in memories.items():
            results[name].append(fit(name, memory, signals, steps, seed))
    print_errors(results)

    best = min((run for runs in results.values() for run in runs), key=lambda run: run.later)
    winner = next(name for name, runs in results.items() if best in runs)
    click.echo(f"The {winner} is exported, and the other recording streamed through it:\n")
    out.mkdir(parents=True, exist_ok=True)
    error = stream(out, best.model, signals.other)
    seconds = len(signals.other) // RATE_HZ
    click.echo(f"\n{seconds} seconds in one stream: {error:.3f} spreads off. Predictions: {out / 'predictions.csv'}")


if __name__ == "__main__":
    main()
