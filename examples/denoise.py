"""Noise removed from speech by GTCRN: a model of 535 KB that others trained and exported, without its torch source.

``python examples/denoise.py`` downloads the model and a recording of speech, adds noise, streams it through the adopted
model, and writes a page where both can be heard and seen. The model takes and gives Fourier frames; edgemem computes
them from samples, and adds them where they overlap.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import packages
from audio_page import RATE_HZ, Samples, Track, drawing, in_noise, read_wav, write_page, write_wav
from commands import edgemem_command
from matplotlib.figure import Figure

FOLDER = Path("demo/denoise")
DECIBELS = 5.0
COMMANDS = """\
edgemem adopt gtcrn_simple.onnx --stft 512,256,sqrt_hann --sample-rate 16000 --out denoiser
edgemem run denoiser --audio noisy.wav --out clean.wav"""


def adopt(folder: Path) -> Path:
    """The model as a bundle."""
    options = ("--stft", "512,256,sqrt_hann", "--sample-rate", str(RATE_HZ))
    edgemem_command("adopt", packages.gtcrn(), *options, "--out", folder / "denoiser")
    return folder / "denoiser"


def quality(found: Samples, wanted: Samples) -> float:
    """How much of ``found`` is ``wanted``, in decibels, whatever its loudness (SI-SNR)."""
    found, wanted = found - found.mean(), wanted - wanted.mean()
    target = wanted * (found @ wanted) / (wanted @ wanted)
    rest = found - target
    return float(10 * np.log10((target @ target) / (rest @ rest)))


def draw(samples: Samples) -> Figure:
    """The spectrogram of a recording."""
    figure = drawing(len(samples) / RATE_HZ)
    figure.axes[0].specgram(samples + 1e-7, NFFT=512, Fs=RATE_HZ, noverlap=384, cmap="magma", vmin=-130, vmax=-40)
    return figure


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Folder to write to.")
def main(out: Path) -> None:
    """Adopt GTCRN, remove the noise from a recording, and write a page."""
    out.mkdir(parents=True, exist_ok=True)
    speech, bundle = read_wav(packages.speech()), adopt(out)
    noisy, clean = write_wav(out / "noisy.wav", in_noise(speech, DECIBELS)), out / "clean.wav"
    edgemem_command("run", bundle, "--audio", noisy, "--out", clean)
    before, after = (quality(read_wav(path), speech) for path in (noisy, clean))
    about = (
        "Recorded speech with pink noise, and what a stream through the model makes of it, 32 ms later. The pictures "
        "show frequencies from 0 at the bottom to 8 kHz. Click into one to listen."
    )
    tracks = [
        Track(f"{name}: {value:.1f} dB of speech over the rest", path, draw(read_wav(path)))
        for name, value, path in (("Before", before, noisy), ("After", after, clean))
    ]
    page = write_page(out / "denoise.html", "Noise, removed by GTCRN", about, COMMANDS, tracks)
    click.echo(f"Speech over the rest (SI-SNR): {before:.1f} dB before, {after:.1f} dB after\nPage: {page}")


if __name__ == "__main__":
    main()
