"""Spotting in a stream: each heartbeat is reported a fifth of a second after its peak, by a small model of one's own.

The recordings are the real ones of ``sensor.py``: the light that a fingertip lets through, 25 samples a second. What
counts as a beat is decided with the whole recording at hand (a sample that is the highest within a third of a second to
either side, and stands out of its surroundings). The model has to do without the future: causal convolutions and a GRU
read the samples as they come. It is trained for seconds on one person's recording, and scored on a later time of it and
on another person's::

    python examples/beats.py --out demo/beats

Then it is exported (its state is a dict with a list in it), streamed sample by sample by ``edgemem run``, and what came
out is held to torch's pass over the whole recording.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sensor import RATE_HZ, edgemem_command, load_signals
from torch import Tensor, nn
from training import Batch, train

from edgemem.console import console, print_table
from edgemem.export import discover, export_bundle, from_module
from edgemem.streaming import CausalConv1d

DELAY = RATE_HZ // 5
"""Samples between a peak and the report of it."""
TOLERANCE = round(0.12 * RATE_HZ)
"""Samples by which a report may be off."""

_REACH = round(0.33 * RATE_HZ)
_AROUND = RATE_HZ
_SETTLE = 2 * RATE_HZ
_STRETCH = 250
_BATCH = 16

State = dict[str, Any]


class BeatSpotter(nn.Module):
    """One raw sample in, one logit out: did a beat peak :data:`DELAY` samples ago?"""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([CausalConv1d(1, width, 5), CausalConv1d(width, width, 5, dilation=3)])
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def initial_state(self, batch: int) -> State:
        """The last inputs of each convolution, and the GRU's state."""
        pasts = [layer.initial_state(batch) for layer in self.convolutions]  # type: ignore[operator]
        return {"convolutions": pasts, "gru": torch.zeros(1, batch, self.gru.hidden_size)}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``[B, T, 1]`` to ``[B, T, 1]``."""
        state = state or self.initial_state(x.shape[0])
        x, pasts = x.mT, []
        for layer, past in zip(self.convolutions, state["convolutions"], strict=True):
            x, new = layer(x, past)
            x = F.gelu(x)
            pasts.append(new)
        read, hidden = self.gru(x.mT, state["gru"])
        return self.head(read), {"convolutions": pasts, "gru": hidden}


@dataclass(frozen=True)
class Recording:
    """A recording and its beats.

    Attributes:
        samples: ``[N]``, in spreads around the training recording's mean.
        beats: ``[N]``, 1 at the peaks and 0 elsewhere.
    """

    samples: Tensor
    beats: Tensor


def find_beats(signal: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where the beats are, with the whole recording at hand ``[N]``."""

    def around(reach: int) -> NDArray[np.float64]:
        return np.lib.stride_tricks.sliding_window_view(np.pad(signal, reach, mode="edge"), 2 * reach + 1)

    wide = around(_AROUND)
    stands_out = signal > wide.mean(axis=1) + 0.5 * wide.std(axis=1)
    peaks: NDArray[np.bool_] = (signal == around(_REACH).max(axis=1)) & stands_out
    peaks[1:] &= ~peaks[:-1]  # a flat top counts once
    return peaks


def load_recordings() -> dict[str, Recording]:
    """``train``, ``later`` (of the same person) and ``other`` (another person, another sensor)."""
    signals = load_signals()
    mean, spread = signals.train.mean(), signals.train.std()
    return {
        name: Recording(((signal - mean) / spread).float(), torch.from_numpy(find_beats(signal.numpy())).float())
        for name, signal in vars(signals).items()
    }


def draw_stretches(recording: Recording, generator: torch.Generator) -> Batch:
    """Stretches ``[B, T, 1]`` with a gain and an offset of their own, and whether a beat was :data:`DELAY` ago."""
    starts = torch.randint(DELAY, len(recording.samples) - _STRETCH, (_BATCH,), generator=generator).tolist()
    samples = torch.stack([recording.samples[at : at + _STRETCH] for at in starts])
    beats = torch.stack([recording.beats[at - DELAY : at + _STRETCH - DELAY] for at in starts])
    gain = torch.exp(2 * torch.rand(_BATCH, 1, generator=generator) - 1.5)
    offset = torch.rand(_BATCH, 1, generator=generator) - 0.5
    return (gain * samples + offset)[..., None], beats[..., None]


def loss_of(logits: Tensor, beats: Tensor) -> Tensor:
    """Binary cross-entropy once the model has heard two beats or so."""
    return F.binary_cross_entropy_with_logits(logits[:, _SETTLE:], beats[:, _SETTLE:])


def spotted(logits: NDArray[np.float32]) -> NDArray[np.int64]:
    """Where the beats are said to be: the tops of the logits above 0, a third of a second apart at least."""
    found: list[int] = []
    for at in np.flatnonzero(logits > 0).tolist():
        if not found or at - found[-1] > _REACH:
            found.append(at)
        elif logits[at] > logits[found[-1]]:
            found[-1] = at
    return np.array(found, dtype=np.int64) - DELAY


@dataclass(frozen=True)
class Score:
    """How well beats were spotted.

    Attributes:
        found: Share of the beats that were reported.
        right: Share of the reports that were beats.
    """

    found: float
    right: float

    @property
    def f1(self) -> float:
        """Their harmonic mean."""
        return 2 * self.found * self.right / max(self.found + self.right, 1e-9)


def score(logits: NDArray[np.float32], recording: Recording) -> Score:
    """Hold the reports of ``logits`` ``[N]`` to the beats, both after the first two seconds."""
    truth = np.flatnonzero(recording.beats.numpy())
    truth = truth[(truth >= _SETTLE) & (truth < len(logits) - DELAY)]
    reports = spotted(logits)
    reports = reports[reports >= _SETTLE]
    if not len(truth) or not len(reports):
        return Score(0.0, 0.0)
    close = np.abs(truth[:, None] - reports) <= TOLERANCE
    return Score(float(close.any(axis=1).mean()), float(close.any(axis=0).mean()))


def offline(model: nn.Module, recording: Recording) -> NDArray[np.float32]:
    """The logits ``[N]`` of one pass over the whole recording, in torch."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(recording.samples[None, :, None])[0][0, :, 0].numpy()
    return logits


def fit(recordings: dict[str, Recording], steps: int, seed: int = 0) -> BeatSpotter:
    """Train a model on the training recording."""
    torch.manual_seed(seed)
    model = BeatSpotter()
    train(
        model,
        lambda generator: draw_stretches(recordings["train"], generator),
        loss_of,
        lambda trained: score(offline(trained, recordings["later"]), recordings["later"]).f1,
        name="beats",
        metric="F1",
        item="samples",
        steps=steps,
        seed=seed,
        learning_rate=1e-2,
        evaluations=3,
    )
    return model


def stream(bundle: Path, recording: Recording, folder: Path, name: str) -> NDArray[np.float32]:
    """The logits ``[N]`` of ``edgemem run`` over the recording, sample by sample."""
    samples, logits = folder / f"{name}.csv", folder / f"{name}-logits.csv"
    np.savetxt(samples, recording.samples.numpy(), fmt="%.9g")
    edgemem_command("run", bundle, samples, stdout=logits)
    return np.loadtxt(logits, dtype=np.float32)


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo/beats"), help="Folder to write to.")
@click.option("--steps", type=click.IntRange(min=1), default=300, help="Training steps.")
def main(out: Path, steps: int) -> None:
    """Train a beat spotter, export it, stream two held-out recordings, and hold the streams to torch."""
    recordings = load_recordings()
    model = fit(recordings, steps)
    out.mkdir(parents=True, exist_ok=True)
    adapter = discover(model, torch.zeros(1, 1, 1))
    click.echo(f"\nWhat was discovered:\n\n{adapter.declaration()}\n")
    bundle = export_bundle(from_module(adapter, "examples/beats.py"), out / "bundle").path
    rows, largest = [], 0.0
    for name, meaning in (("later", "later in the recording"), ("other", "another person")):
        whole = offline(model, recordings[name])
        streamed = stream(bundle, recordings[name], out, name)
        largest = max(largest, float(np.abs(streamed - whole).max()))
        for how, logits in (("offline, in torch", whole), ("streamed by edgemem", streamed)):
            result = score(logits, recordings[name])
            rows.append([meaning, how, f"{result.found:.1%}", f"{result.right:.1%}", f"{result.f1:.3f}"])
    click.echo()
    columns = ("recording", "model", "beats found", "reports right", "F1")
    print_table(console(), "Heartbeats, spotted 0.2 s after their peak", columns, rows, right=columns[2:])
    click.echo(f"Largest difference between streamed and offline logits: {largest:.1e}")


if __name__ == "__main__":
    main()
