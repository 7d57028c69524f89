"""Recordings for the audio examples, and one HTML page of players and pictures that needs no other file."""

from __future__ import annotations

import base64
import html
import io
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

RATE_HZ = 16_000
INK, FAINT, OURS = "#1c2024", "#d5dae0", "#0b6bcb"
WIDTH, HEIGHT = 12.0, 3.2
"""Inches of a picture."""

Samples = NDArray[np.float32]

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2024; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: 0.3rem }
figure { margin: 2rem 0 }
figcaption { margin-bottom: 0.4rem }
.plot { position: relative }
.plot img { width: 100%; display: block }
.plot i { position: absolute; top: 0; bottom: 0; left: 0; width: 2px; background: #d6336c; pointer-events: none }
.time { position: relative; height: 1.6rem; font-size: 0.75rem; color: #5c6570 }
.time span { position: absolute; transform: translateX(-50%); white-space: nowrap }
@media (max-width: 40rem) { .time span:nth-child(odd) { display: none } }
audio { width: 100% }
pre { background: #f4f6f8; padding: 0.8rem; white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem }
"""
# The line in a picture moves with the sound, and a click into the picture plays from there.
SCRIPT = """
for (const figure of document.querySelectorAll("figure")) {
  const [audio, plot, line] = ["audio", ".plot", "i"].map(name => figure.querySelector(name));
  const follow = () => {
    line.style.left = 100 * audio.currentTime / (audio.duration || 1) + "%";
    requestAnimationFrame(follow);
  };
  follow();
  plot.onclick = event => {
    audio.currentTime = audio.duration * event.offsetX / plot.clientWidth;
    audio.play();
  };
}
"""


def read_wav(path: Path) -> Samples:
    """The samples of a 16-bit WAV file with one channel, -1 to 1."""
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    return np.asarray(samples / 32768, np.float32)


def write_wav(path: Path, samples: Samples) -> Path:
    """Write such a file at 16 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE_HZ, 0, "NONE", ""))
        file.writeframes(np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes())
    return path


def noise(count: int, seed: int = 0) -> Samples:
    """Pink noise of unit power: a fan, or distant traffic."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(count))
    made = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), count)
    return np.asarray(made / made.std(), np.float32)


def in_noise(speech: Samples, decibels: float) -> Samples:
    """Speech in noise, so many decibels louder than it."""
    return np.asarray(speech + noise(len(speech)) * speech.std() * 10 ** (-decibels / 20), np.float32)


@dataclass(frozen=True)
class Track:
    """A player with its picture.

    Attributes:
        caption: What one hears and sees.
        wav: The sound.
        picture: What is drawn, from its first to its last sample.
    """

    caption: str
    wav: Path
    picture: Figure


def drawing(seconds: float, rows: tuple[float, ...] = (1.0,)) -> Figure:
    """An empty picture whose axes reach from edge to edge, so that its width is the time."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=110)
    figure.subplots(len(rows), sharex=True, gridspec_kw={"height_ratios": rows, "hspace": 0.05})
    figure.subplots_adjust(left=0, right=1, top=1, bottom=0)
    for axes in figure.axes:
        axes.set(xlim=(0, seconds), xticks=[], yticks=[])
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def write_page(path: Path, title: str, about: str, commands: str, tracks: list[Track]) -> Path:
    """Write the page."""
    parts = [
        f"<figure><figcaption>{html.escape(track.caption)}</figcaption>"
        f'<div class="plot"><img alt="{html.escape(track.caption)}" '
        f'src="{_url("image/webp", _webp(track.picture))}"><i></i></div>'
        f'<div class="time">{_seconds(track.picture)}</div>'
        f'<audio controls src="{_url("audio/wav", track.wav.read_bytes())}"></audio></figure>'
        for track in tracks
    ]
    path.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>{''.join(parts)}"
        f"<pre>{html.escape(commands)}</pre><script>{SCRIPT}</script></html>",
        encoding="utf-8",
    )
    return path


def _seconds(figure: Figure) -> str:
    """A label for each second below a picture: text of the page, which a narrow screen can read."""
    _, end = figure.axes[0].get_xlim()
    return "".join(f'<span style="left:{100 * at / end:.2f}%">{at} s</span>' for at in range(1, int(end) + 1))


def _webp(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="webp", pil_kwargs={"quality": 85})
    return file.getvalue()


def _url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
