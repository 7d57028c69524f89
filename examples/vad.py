"""Speech in a recording, found by silero-vad: a model that others trained and exported, without its torch source.

``python examples/vad.py`` downloads the model and a recording of speech, adopts the model, streams the recording
through it, and writes a page with the sound, the probabilities and the segments.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import packages
from audio_page import FAINT, INK, OURS, RATE_HZ, Samples, Track, drawing, in_noise, read_wav, write_page, write_wav
from commands import edgemem_command
from matplotlib.figure import Figure
from numpy.typing import NDArray

FOLDER = Path("demo/vad")
DECIBELS = 0.0
THRESHOLD = 0.5
COMMANDS = """\
edgemem adopt silero_vad.onnx --fixed sr=16000 --takes 512 --context 64 --out vad
edgemem run vad --audio speech.wav --threshold 0.5"""


def record() -> Samples:
    """Speech as it was recorded, and once more in noise as loud as the speech."""
    speech = read_wav(packages.speech())
    return np.concatenate([speech, in_noise(speech, DECIBELS)])


def adopt(folder: Path) -> Path:
    """The model as a bundle."""
    options = ("--fixed", "sr=16000", "--takes", "512", "--context", "64")
    edgemem_command("adopt", packages.silero(), *options, "--out", folder / "vad")
    return folder / "vad"


def draw(samples: Samples, probabilities: NDArray[np.float64], segments: NDArray[np.float64]) -> Figure:
    """The sound with its segments, and below it the probability of speech.

    Args:
        samples: The recording ``[N]``.
        probabilities: Their time in seconds, and their value: ``[M, 2]``.
        segments: Start and end in seconds, ``[S, 2]``.
    """
    figure = drawing(len(samples) / RATE_HZ, rows=(2, 1))
    sound, curve = figure.axes
    seconds = np.arange(len(samples)) / RATE_HZ
    sound.plot(seconds, samples, color=INK, linewidth=0.4)
    curve.plot(probabilities[:, 0], probabilities[:, 1], color=OURS, linewidth=1.2, drawstyle="steps-post")
    curve.axhline(THRESHOLD, color=FAINT, linewidth=1)
    for start, end in segments:
        for axes in figure.axes:
            axes.axvspan(start, end, color=OURS, alpha=0.12, linewidth=0)
    return figure


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Folder to write to.")
def main(out: Path) -> None:
    """Adopt silero-vad, find the speech in a recording, and write a page."""
    out.mkdir(parents=True, exist_ok=True)
    samples, bundle = record(), adopt(out)
    wav = write_wav(out / "speech.wav", samples)
    values, labels = out / "probabilities.csv", out / "segments.txt"
    edgemem_command("run", bundle, "--audio", wav, stdout=values)
    edgemem_command("run", bundle, "--audio", wav, "--threshold", str(THRESHOLD), stdout=labels)
    probabilities = np.loadtxt(values, delimiter=",", ndmin=2)
    segments = np.loadtxt(labels, usecols=(0, 1), ndmin=2)
    about = (
        "Ten seconds of recorded speech, then the same in noise as loud as the speech. The curve is the probability of "
        "speech that the model gives for every 32 ms; the segments follow from it. Click into the picture to listen."
    )
    found = f"{len(segments)} segments, {float(np.diff(segments).sum()):.1f} s of {len(samples) / RATE_HZ:.1f} s"
    picture = draw(samples, probabilities, segments)
    page = write_page(out / "vad.html", "Speech, found by silero-vad", about, COMMANDS, [Track(found, wav, picture)])
    click.echo(f"{found}\nPage: {page}")


if __name__ == "__main__":
    main()
