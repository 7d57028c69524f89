"""A heartbeat spotter: a small model that reports each heartbeat while the samples arrive.

The data are real pulse recordings of two people. The model trains for some seconds on the first recording. It is then
exported, and ``edgemem run`` streams two held-out recordings through it, one sample at a time: a later part of the same
recording, and the other person's::

    python examples/beats.py

The script prints how many beats were found, and how far the stream is from torch's pass over the whole recording. With
matplotlib installed, it draws the stream.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from beat_model import FOLDER, WEIGHTS, BeatSpotter
from beat_score import DELAY, SETTLE, find_beats, score
from commands import edgemem_command
from numpy.typing import NDArray
from recordings import RATE_HZ, load_signals
from torch import Tensor, nn
from training import Batch, train

from edgemem.console import console, print_table

HELD_OUT = {"later": "same person, later", "other": "another person"}

_STRETCH = 250
_BATCH = 16
_BEAT_WEIGHT = 2.0  # beats are rare: one sample in sixteen


@dataclass(frozen=True)
class Recording:
    """A recording and its beats.

    Attributes:
        samples: float32 ``[N]``, scaled by the mean and the standard deviation of the training recording.
        beats: float32 ``[N]``, 1 at the peaks and 0 elsewhere.
    """

    samples: Tensor
    beats: Tensor


def load_recordings() -> dict[str, Recording]:
    """``train``, ``later`` (the same person) and ``other`` (another person, another sensor)."""
    signals = load_signals()
    mean, spread = signals.train.mean(), signals.train.std()
    return {
        name: Recording(((signal - mean) / spread).float(), torch.from_numpy(find_beats(signal.numpy())).float())
        for name, signal in vars(signals).items()
    }


def draw_stretches(recording: Recording, generator: torch.Generator) -> Batch:
    """Draw stretches ``[B, T, 1]``, each with a random gain and offset, and whether a beat was :data:`DELAY` ago."""
    starts = torch.randint(DELAY, len(recording.samples) - _STRETCH, (_BATCH,), generator=generator).tolist()
    samples = torch.stack([recording.samples[at : at + _STRETCH] for at in starts])
    beats = torch.stack([recording.beats[at - DELAY : at + _STRETCH - DELAY] for at in starts])
    gain = torch.exp(2 * torch.rand(_BATCH, 1, generator=generator) - 1.5)
    offset = torch.rand(_BATCH, 1, generator=generator) - 0.5
    return (gain * samples + offset)[..., None], beats[..., None]


def loss_of(logits: Tensor, beats: Tensor) -> Tensor:
    """Binary cross-entropy after the first two seconds of each stretch."""
    weight = torch.tensor(_BEAT_WEIGHT)
    return F.binary_cross_entropy_with_logits(logits[:, SETTLE:], beats[:, SETTLE:], pos_weight=weight)


def offline(model: nn.Module, recording: Recording) -> NDArray[np.float32]:
    """The logits ``[N]`` of one pass over the whole recording, in torch."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(recording.samples[None, :, None])[0][0, :, 0].numpy()
    return logits


def fit(recordings: dict[str, Recording], steps: int, seed: int = 0) -> BeatSpotter:
    """Train a model on the training recording."""
    torch.manual_seed(seed)
    model = BeatSpotter()
    later = recordings["later"]
    train(
        model,
        lambda generator: draw_stretches(recordings["train"], generator),
        loss_of,
        lambda trained: score(offline(trained, later), later.beats.bool().numpy()).f1,
        name="beats",
        metric="F1",
        item="samples",
        steps=steps,
        seed=seed,
        learning_rate=1e-2,
        evaluations=4,
    )
    return model


def export(model: BeatSpotter, folder: Path) -> Path:
    """Save the weights, and export the model as a user would."""
    torch.save(model.state_dict(), folder / WEIGHTS)
    variables = {"PYTHONPATH": os.path.relpath(Path(__file__).parent)}
    if folder != FOLDER:
        variables["BEATS"] = str(folder)
    edgemem_command("export", "beat_model:spotter", "--out", folder / "bundle", variables=variables)
    return folder / "bundle"


def stream(bundle: Path, recording: Recording, folder: Path, name: str) -> NDArray[np.float32]:
    """The logits ``[N]`` of ``edgemem run`` on the recording, one sample at a time."""
    samples, logits = folder / f"{name}.csv", folder / f"{name}-logits.csv"
    np.savetxt(samples, recording.samples.numpy(), fmt="%.9g")
    # edgemem run answers every row of stdin before it reads the next. From a CSV file it would read chunks.
    edgemem_command("run", bundle, stdin=samples, stdout=logits)
    return np.loadtxt(logits, dtype=np.float32)


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Folder to write to.")
@click.option("--steps", type=click.IntRange(min=1), default=200, help="Training steps.")
def main(out: Path, steps: int) -> None:
    """Train a heartbeat spotter, export it, stream two held-out recordings, and score the reports."""
    recordings = load_recordings()
    model = fit(recordings, steps)
    out.mkdir(parents=True, exist_ok=True)
    bundle = export(model, out)
    rows, largest = [], 0.0
    for name, meaning in HELD_OUT.items():
        recording = recordings[name]
        streamed, whole = stream(bundle, recording, out, name), offline(model, recording)
        largest = max(largest, float(np.abs(streamed - whole).max()))
        for how, logits in (("torch, whole recording", whole), ("edgemem, sample by sample", streamed)):
            result = score(logits, recording.beats.bool().numpy())
            rows.append([meaning, how, f"{result.recall:.1%}", f"{result.precision:.1%}", f"{result.f1:.3f}"])
    click.echo()
    columns = ("recording", "model", "beats found", "reports correct", "F1")
    print_table(
        console(), f"Heartbeats, reported {DELAY / RATE_HZ:g} s after their peak", columns, rows, right=columns[2:]
    )
    click.echo(f"Largest difference between the stream and torch: {largest:.1e}")
    if importlib.util.find_spec("matplotlib"):
        from beat_picture import save_picture

        other = recordings["other"]
        save_picture(out / "beats.png", other.samples.numpy(), other.beats.bool().numpy(), streamed)
        click.echo(f"Picture: {out / 'beats.png'}")


if __name__ == "__main__":
    main()
