"""Real pulse recordings: the light that passes through a fingertip, which varies with every heartbeat.

The recordings (photoplethysmograms) are part of the package ``heartpy``. They are averaged to 25 samples a second.
"""

from __future__ import annotations

import csv
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

RATE_HZ = 25

_RECORDED_HZ = 100
_TRAIN_SHARE = 0.8
_GAP = 10 * RATE_HZ


def load_recording(name: str) -> NDArray[np.float64]:
    """The last column of one of heartpy's CSV files, averaged to :data:`RATE_HZ` samples a second.

    The recordings were made at 100 and 117 samples a second. Both are averaged by four.
    """
    # Only the package's files are needed, so it is found and not imported.
    spec = importlib.util.find_spec("heartpy")
    if spec is None or not spec.submodule_search_locations:
        raise click.ClickException('the recordings are part of heartpy. Install it with: pip install ".[examples]"')
    path = Path(spec.submodule_search_locations[0]) / "data" / name
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    samples = np.array([float(row[-1]) for row in rows if len(row) > 1])
    each = _RECORDED_HZ // RATE_HZ
    averaged: NDArray[np.float64] = samples[: len(samples) // each * each].reshape(-1, each).mean(axis=1)
    return averaged


@dataclass(frozen=True)
class Signals:
    """Training and held-out signals. No sample is in two of them.

    Attributes:
        train: The first part of one person's recording, float64 ``[N]``.
        later: The last part of the same recording, after a gap of ten seconds.
        other: The recording of another person, made with another sensor.
    """

    train: Tensor
    later: Tensor
    other: Tensor


def load_signals() -> Signals:
    """Load the two recordings and cut them into training and held-out signals."""
    long = torch.from_numpy(load_recording("data3.csv"))
    cut = round(_TRAIN_SHARE * len(long))
    # The first 40 seconds of the other recording hold only jolts and zeros: the sensor is being put on.
    other = torch.from_numpy(load_recording("data2.csv"))[50 * RATE_HZ :]
    return Signals(long[:cut], long[cut + _GAP :], other)
