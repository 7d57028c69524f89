"""Draw a stretch of a pulse recording with the heartbeats that the stream reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from beat_score import DELAY, TOLERANCE, reported
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from recordings import RATE_HZ

INK, FAINT, OURS, OTHER = "#1c2024", "#8a929a", "#0b6bcb", "#b4540a"

FROM, TO = 60, 75
"""Seconds of the recording that are drawn."""


def draw_stream(
    axes: Axes, samples: NDArray[np.float32], beats: NDArray[np.bool_], logits: NDArray[np.float32]
) -> None:
    """Draw the samples, and a mark at every report and at every beat that was missed.

    Args:
        axes: Where to draw.
        samples: The recording ``[N]``.
        beats: Its beats ``[N]``.
        logits: What the model returned for each sample ``[N]``.
    """
    start, end = FROM * RATE_HZ, TO * RATE_HZ
    seconds = np.arange(len(samples)) / RATE_HZ - FROM
    peaks, reports = np.flatnonzero(beats), reported(logits)
    close = np.abs(reports[:, None] - DELAY - peaks) <= TOLERANCE  # [reports, peaks]
    right, wrong = reports[close.any(axis=1)], reports[~close.any(axis=1)]
    missed = peaks[~close.any(axis=0)]
    shown = slice(start, end)
    axes.plot(seconds[shown], samples[shown], color=INK, linewidth=1.3)
    marks = (
        (right, "o", OURS, "heartbeat reported"),
        (wrong, "X", OTHER, "false report"),
        (missed, "v", OTHER, "missed"),
    )
    for at, marker, color, label in marks:
        at = at[(at >= start) & (at < end)]
        if len(at):
            axes.scatter(seconds[at], samples[at], marker=marker, s=55, color=color, label=label, zorder=3)
    axes.set(xlim=(0, TO - FROM), xlabel="seconds", yticks=[], ylabel="pulse signal")
    axes.legend(loc="upper right", frameon=False, ncols=3, bbox_to_anchor=(1, 1.18))
    axes.spines[["top", "right", "left"]].set_visible(False)


def save_picture(
    path: Path, samples: NDArray[np.float32], beats: NDArray[np.bool_], logits: NDArray[np.float32]
) -> None:
    """Write :func:`draw_stream` to a PNG file."""
    figure = Figure(figsize=(10, 3), layout="constrained", dpi=110)
    axes = figure.subplots()
    draw_stream(axes, samples, beats, logits)
    axes.set_title("Another person's pulse, streamed one sample at a time", loc="left", fontsize=11)
    figure.savefig(path)
