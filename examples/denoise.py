"""Noise removed from speech by GTCRN and DTLN: models that others trained and exported, without their torch source.

``python examples/denoise.py`` downloads the models and a recording of speech, adds noise, streams it through the
adopted models, and writes a page where all can be heard and seen. GTCRN takes and gives Fourier frames, which edgemem
computes from samples and adds where they overlap. DTLN is two networks with a mask between them.
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
edgemem adopt gtcrn_simple.onnx --stft 512,256,sqrt_hann --sample-rate 16000 --out gtcrn
edgemem adopt model_1.onnx model_2.onnx --between spectral-mask --takes 128 --context 384 --sample-rate 16000 --out dtln
edgemem run gtcrn --audio noisy.wav --out clean.wav"""


def adopt(folder: Path) -> dict[str, Path]:
    """The models as bundles."""
    rate = ("--sample-rate", str(RATE_HZ), "--out")
    edgemem_command("adopt", packages.gtcrn(), "--stft", "512,256,sqrt_hann", *rate, folder / "gtcrn")
    stages = ("--between", "spectral-mask", "--takes", "128", "--context", "384")
    edgemem_command("adopt", packages.dtln(1), packages.dtln(2), *stages, *rate, folder / "dtln")
    return {"GTCRN": folder / "gtcrn", "DTLN": folder / "dtln"}


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
    figure.axes[0].set_xlim(0, len(samples) / RATE_HZ)  # it begins and ends with whole windows
    return figure


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Folder to write to.")
def main(out: Path) -> None:
    """Adopt GTCRN and DTLN, remove the noise from a recording, and write a page."""
    out.mkdir(parents=True, exist_ok=True)
    speech, bundles = read_wav(packages.speech()), adopt(out)
    heard = {"Before": write_wav(out / "noisy.wav", in_noise(speech, DECIBELS))}
    for name, bundle in bundles.items():
        heard[name] = out / f"{bundle.name}.wav"
        edgemem_command("run", bundle, "--audio", heard["Before"], "--out", heard[name])
    samples = {name: read_wav(path) for name, path in heard.items()}
    lines = {
        name: f"{name}: {quality(found, speech):.1f} dB of speech over the rest" for name, found in samples.items()
    }
    about = (
        "Recorded speech with pink noise, and what a stream through each model makes of it, 32 ms later. The pictures "
        "show frequencies from 0 at the bottom to 8 kHz. Click into one to listen."
    )
    tracks = [Track(lines[name], path, draw(samples[name])) for name, path in heard.items()]
    page = write_page(out / "denoise.html", "Noise, removed by GTCRN and by DTLN", about, COMMANDS, tracks)
    click.echo("\n".join([*lines.values(), f"Page: {page}"]))


if __name__ == "__main__":
    main()
