"""A task where the distant past matters: a pulse sensor with unknown gain and offset.

The data are the real pulse recordings of ``recordings.py``. Every stretch is seen through a simulated sensor with a
random gain and offset, because fingers and sensors differ. The model reads raw samples one at a time and predicts the
next one **in units of the recording itself**: standard deviations above the mean, both over the samples so far.

A window of a third of a second cannot know that mean and deviation. The average of all samples so far can help. The
script trains two models: a window with a cumulative summary, and a longer window alone that takes as many bytes. It
scores both on held-out signals: a later part of the training recording, and another person's recording. It then exports
the better model, and ``edgemem run`` streams a recording through it::

    python examples/sensor.py --out demo/sensor

The script prints both errors, whichever model wins. When it was written, the summary won clearly on both signals and
with both seeds that were tried (``--seeds 2``). A window that already spans several heartbeats gains less from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from commands import edgemem_command
from recordings import RATE_HZ, Signals, load_signals
from torch import Tensor, nn
from training import Batch, train

from edgemem.console import console, print_table
from edgemem.decoder_config import MemorySpec
from edgemem.models import Decoder, DecoderConfig, save_checkpoint

SECONDS_TO_SETTLE = 2
"""Earlier predictions are neither trained nor scored: mean and deviation are not yet reliable."""

_SETTLE = SECONDS_TO_SETTLE * RATE_HZ
_STRETCH = 192
_SCORED_STRETCH = 512
_DRAWS = 4  # simulated sensors for each scored stretch
_BATCH = 16
_WINDOW = 8

SUMMARY: list[MemorySpec] = [{"type": "window", "window": _WINDOW}, {"type": "cumulative", "bias": "log_count"}]


def through_sensors(stretches: Tensor, generator: torch.Generator) -> Batch:
    """Simulate a sensor for each stretch, and compute what the model must predict.

    Args:
        stretches: ``[B, T + 1]``.
        generator: Draws the sensors.

    Returns:
        The samples ``[B, T, 1]``, and the targets ``[B, T, 1]``: the next sample minus the mean of the samples so far,
        divided by their standard deviation.
    """
    size = stretches.shape[0]
    gain = torch.exp(-math.log(10) * torch.rand(size, 1, generator=generator))  # 0.1 to 1
    offset = 2 * torch.rand(size, 1, generator=generator) - 1  # -1 to 1
    unit = (stretches - stretches.mean(dim=1, keepdim=True)) / stretches.std(dim=1, keepdim=True)
    samples = gain * unit + offset

    # The targets do not depend on gain and offset.
    count = torch.arange(1, unit.shape[1] + 1)
    mean = unit.cumsum(dim=1) / count
    variance = (unit.square().cumsum(dim=1) / count - mean.square()).clamp_min(1e-4)
    targets = (unit[:, 1:] - mean[:, :-1]) / variance[:, :-1].sqrt()
    return samples[:, :-1, None].float(), targets[..., None].float()


def settled(values: Tensor) -> Tensor:
    """The time steps of ``[B, T, ...]`` that are trained and scored."""
    return values[:, _SETTLE:]


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Huber loss, so that one jolt of the finger does not outweigh a hundred heartbeats."""
    return F.smooth_l1_loss(settled(outputs), settled(targets))


def scored_batch(signal: Tensor) -> Batch:
    """Cut a held-out signal into stretches and see each through several sensors. Every call returns the same."""
    length = min(_SCORED_STRETCH, len(signal) - 1)
    count = len(signal) // (length + 1)
    stretches = signal[: count * (length + 1)].reshape(count, length + 1)
    return through_sensors(stretches.repeat(_DRAWS, 1), torch.Generator().manual_seed(1))


def rms_error(model: nn.Module, batch: Batch) -> float:
    """Root mean square error of the predictions, in standard deviations of the recording."""
    inputs, targets = batch
    errors = [settled(model(x)[0] - y) for x, y in zip(torch.split(inputs, 8), torch.split(targets, 8), strict=True)]
    return float(torch.cat(errors).square().mean().sqrt())


def make_config(memory: list[MemorySpec]) -> DecoderConfig:
    """The model's configuration with this memory."""
    return DecoderConfig(
        d_model=64,
        layers=2,
        heads=2,
        memory=memory,
        features=1,
        outputs=1,
        input_meaning=f"one raw sample of a pulse sensor with any gain and offset, {RATE_HZ} a second",
    )


def state_bytes(memory: list[MemorySpec]) -> int:
    """Bytes of state of one stream."""
    return Decoder(make_config(memory)).contract().state_bytes


def window_alone() -> list[MemorySpec]:
    """A longer window that takes as many bytes as :data:`SUMMARY`."""
    return [{"type": "window", "window": state_bytes(SUMMARY) // state_bytes([{"type": "window", "window": 1}])}]


@dataclass(frozen=True)
class Trained:
    """A trained model and its errors.

    Attributes:
        model: The model.
        later: Its error on a later part of the training recording.
        other: Its error on the other person's recording.
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
        metric="RMS error",
        item="samples",
        steps=steps,
        seed=seed,
        evaluations=3,
    )
    with torch.inference_mode():
        return Trained(model, error, rms_error(model, other))


def print_errors(results: dict[str, list[Trained]]) -> None:
    """Print a row for each memory: the mean over the seeds, and each seed's error if there are several."""
    rows = []
    for name, runs in results.items():
        row = [name, f"{runs[0].model.contract().state_bytes:,}"]
        for errors in ([run.later for run in runs], [run.other for run in runs]):
            each = f" ({', '.join(f'{error:.3f}' for error in errors)})" if len(errors) > 1 else ""
            row.append(f"{sum(errors) / len(errors):.3f}{each}")
        rows.append(row)
    title = "RMS error of the next sample on held-out signals, in standard deviations"
    columns = ("memory", "state bytes", "same person, later", "another person")
    print_table(console(), title, columns, rows, right=columns[1:])


def stream(folder: Path, model: Decoder, signal: Tensor) -> float:
    """Export the model, and stream the signal through it one sample at a time.

    Returns:
        The root mean square error of the streamed predictions.
    """
    save_checkpoint(model, folder / "checkpoint")
    samples, targets = through_sensors(signal[None], torch.Generator().manual_seed(1))
    np.savetxt(folder / "samples.csv", samples[0].numpy(), fmt="%.9g", header="sample", comments="")
    edgemem_command("export", folder / "checkpoint", "--out", folder / "bundle")
    edgemem_command("run", folder / "bundle", stdin=folder / "samples.csv", stdout=folder / "predictions.csv")
    predictions = torch.from_numpy(np.loadtxt(folder / "predictions.csv", dtype=np.float32))
    return float(settled(predictions[None, :, None] - targets).square().mean().sqrt())


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo/sensor"), help="Folder to write to.")
@click.option("--steps", type=click.IntRange(min=1), default=500, help="Training steps of each model.")
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, help="Times to train each model, each with another seed."
)
def main(out: Path, steps: int, seeds: int) -> None:
    """Train with and without a summary at equal state bytes, compare, export the better model, and stream."""
    signals = load_signals()
    memories = {"window with a summary": SUMMARY, "window alone": window_alone()}
    results: dict[str, list[Trained]] = {name: [] for name in memories}
    for seed in range(seeds):
        for name, memory in memories.items():
            results[name].append(fit(name, memory, signals, steps, seed))
    print_errors(results)

    best = min((run for runs in results.values() for run in runs), key=lambda run: run.later)
    winner = next(name for name, runs in results.items() if best in runs)
    click.echo(f"Exporting the {winner}, and streaming the other person's recording:\n")
    out.mkdir(parents=True, exist_ok=True)
    error = stream(out, best.model, signals.other)
    seconds = len(signals.other) // RATE_HZ
    click.echo(f"\n{seconds} seconds in one stream: RMS error {error:.3f}. Predictions: {out / 'predictions.csv'}")


if __name__ == "__main__":
    main()
