"""Modules of several inputs, outputs and rates, and what they compute, written from the formulas in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.contract import Contract, InputSpec
from tests.export import modules

Array = np.ndarray[Any, Any]
State = tuple[Tensor, Tensor]


def weights(layer: nn.Module) -> dict[str, Array]:
    """A layer's parameters by name, in float64."""
    return {name: value.detach().numpy().astype(np.float64) for name, value in layer.named_parameters()}


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def linear(layer: nn.Linear, x: Array) -> Array:
    own = weights(layer)
    return x @ own["weight"].T + own["bias"]


def gru(layer: nn.GRU, x: Array) -> Array:
    """A GRU of one layer from zeros: ``h = (1 - z) n + z h`` for ``x`` ``[B, T, F]``."""
    own = weights(layer)
    h, outputs = np.zeros((len(x), layer.hidden_size)), []
    for t in range(x.shape[1]):
        of_x = np.split(x[:, t] @ own["weight_ih_l0"].T + own["bias_ih_l0"], 3, axis=1)
        of_h = np.split(h @ own["weight_hh_l0"].T + own["bias_hh_l0"], 3, axis=1)
        reset, update = sigmoid(of_x[0] + of_h[0]), sigmoid(of_x[1] + of_h[1])
        h = (1 - update) * np.tanh(of_x[2] + reset * of_h[2]) + update * h
        outputs.append(h)
    return np.stack(outputs, axis=1)


def lstm(layer: nn.LSTM, x: Array, h: Array, c: Array) -> Array:
    """An LSTM of one layer from ``h`` and ``c`` ``[H]`` for ``x`` ``[B, T, F]``."""
    own = weights(layer)
    h, c, outputs = np.tile(h, (len(x), 1)), np.tile(c, (len(x), 1)), []
    for t in range(x.shape[1]):
        gates = x[:, t] @ own["weight_ih_l0"].T + own["bias_ih_l0"] + h @ own["weight_hh_l0"].T + own["bias_hh_l0"]
        enter, forget, new, out = np.split(gates, 4, axis=1)
        c = sigmoid(forget) * c + sigmoid(enter) * np.tanh(new)
        h = sigmoid(out) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1)


class TwoByTwo(nn.Module):
    """Two inputs, ``imu`` and ``gps``; two outputs, ``pose`` and ``moving``."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(7, 8, batch_first=True)
        self.pose, self.moving = nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, x: dict[str, Tensor], h: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        y, h = self.gru(torch.cat([x["imu"], x["gps"]], dim=2), h)
        return {"pose": self.pose(y), "moving": torch.sigmoid(self.moving(y))}, h

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        y = gru(self.gru, np.concatenate([data["imu"], data["gps"]], axis=2))
        return {"pose": linear(self.pose, y), "moving": sigmoid(linear(self.moving, y))}


class Encoder(nn.Module):
    """A convolution with 6 taps and stride 4: one output for 4 inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 6, stride=4)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        past = x.new_zeros(len(x), 2, 3) if past is None else past
        known = torch.cat([past, x], dim=1)
        return torch.relu(self.conv(known.mT)).mT, known[:, -2:]

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        own, x = weights(self.conv), data["features"]
        x = np.concatenate([np.zeros((len(x), 2, 3)), x], axis=1)
        frames = [x[:, start : start + 6] for start in range(0, x.shape[1] - 5, 4)]
        y = [np.einsum("bti,oit->bo", frame, own["weight"]) + own["bias"] for frame in frames]
        return {"predictions": np.maximum(np.stack(y, axis=1), 0)}


class Speaker(nn.Module):
    """A GRU whose output is scaled by what a stream holds: a speaker's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 8, batch_first=True)
        self.scale, self.head = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: dict[str, Tensor], h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, h = self.gru(x["audio"], h)
        return self.head(y * torch.tanh(self.scale(x["speaker"]))[:, None]), h

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        scale = np.tanh(linear(self.scale, data["speaker"]))[:, None]
        return {"predictions": linear(self.head, gru(self.gru, data["audio"]) * scale)}


class Learned(nn.Module):
    """An LSTM with a learned initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.h, self.c = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 1, 4))

    def initial_state(self, batch: int) -> State:
        return self.h.expand(1, batch, 4), self.c.expand(1, batch, 4)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        h, c = state
        return self.lstm(x, (h.contiguous(), c.contiguous()))

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        own = weights(self)
        return {"predictions": lstm(self.lstm, data["features"], own["h"][0, 0], own["c"][0, 0])}


class Fusion(nn.Module):
    """Four samples of ``audio`` and one frame of ``video`` a step, a constant ``gain``; outputs of rates 1 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(1, 6, 4, stride=4)
        self.gru = nn.GRU(8, 6, batch_first=True)
        self.up = nn.Linear(6, 4)

    def forward(self, x: dict[str, Tensor], h: Tensor | None = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        y, h = self.gru(torch.cat([self.down(x["audio"][:, None]).mT, x["video"]], dim=2), h)
        return (y, self.up(y).reshape(x["audio"].shape) * x["gain"]), h


class Blocks(nn.Module):
    """As many outputs as inputs, computed from blocks of two: right in whole blocks only."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(1, 6, 2, stride=2), nn.ConvTranspose1d(6, 1, 2, stride=2)
        self.gru = nn.GRU(6, 6, batch_first=True)

    def forward(self, x: Tensor, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, h = self.gru(self.down(F.pad(x.mT, (0, x.shape[1] % 2))).mT, h)
        return self.up(y.mT).mT[:, : x.shape[1]], h


class Framed(nn.Module):
    """A convolution without padding: the runtime repeats the 3 samples before; and a mean of all frames so far."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 5, 8, stride=5)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        total, count = state
        frames = torch.relu(self.conv(x[:, None])).mT
        totals = total[:, None] + frames.cumsum(dim=1)
        counts = count[:, None] + 1 + torch.arange(frames.shape[1])
        return totals / counts[..., None], (totals[:, -1], counts[:, -1])

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        own, x = weights(self.conv), data["audio"]
        x = np.concatenate([np.zeros((len(x), 3)), x], axis=1)
        frames = np.stack([x[:, start : start + 8] for start in range(0, x.shape[1] - 7, 5)], axis=1)
        y = np.maximum(frames @ own["weight"][:, 0].T + own["bias"], 0)
        return {"mean": y.cumsum(axis=1) / np.arange(1, y.shape[1] + 1)[:, None]}


class TimeFree(nn.Module):
    """A GRU cell whose tensors have no time axis, and the streams on the last axis of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(3, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h = self.cell(x, h)
        return h.T, h

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        layer = nn.GRU(3, 4, batch_first=True)
        layer.load_state_dict({f"{name}_l0": value for name, value in self.cell.state_dict().items()})
        return {"level": gru(layer, data["features"])}


class Spectral(nn.Module):
    """Multiplies frames of an STFT of 8 samples, 4 new ones each, with a level that leaks."""

    def forward(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        power = x.square().sum(dim=3)  # [B, T, 5]
        ages = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
        weight = torch.where(ages >= 0, 0.5 ** ages.clamp_min(0), 0.0)  # [T, T]
        decay = 0.5 ** torch.arange(1, x.shape[1] + 1)
        levels = weight @ power + decay[:, None] * level[:, None]
        return x * levels[..., None], levels[:, -1]

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        x = data["mix"]
        x = np.concatenate([np.zeros((len(x), 4)), x], axis=1)
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(8) / 8)
        level, sums = 0.0, np.zeros_like(x)
        for start in range(0, x.shape[1] - 7, 4):
            frame = np.fft.rfft(x[:, start : start + 8] * window)
            level = 0.5 * level + np.abs(frame) ** 2
            sums[:, start : start + 8] += np.fft.irfft(frame * level, 8) * window
        return {"enhanced": sums[:, :-4] / np.tile(window[:4] ** 2 + window[4:] ** 2, sums.shape[1] // 4 - 1)}


class ScaledRing(modules.RingSum):
    """The sum over the last 4 steps of two items each, through a ring, times what a stream holds."""

    def contract(self) -> Contract:
        return replace(
            super().contract(),
            input_specs=(InputSpec("pairs", (1,), takes=2), InputSpec("scale", role="held")),
        )

    def forward(self, x: dict[str, Tensor], state: modules.State) -> tuple[Tensor, dict[str, Tensor]]:
        sums, new = super().forward(x["pairs"].unflatten(1, (-1, 2)).sum(dim=2), state)
        return sums * x["scale"][:, None, None], new

    def formula(self, data: dict[str, Array]) -> dict[str, Array]:
        steps = data["pairs"].reshape(len(data["pairs"]), -1, 2).sum(axis=2)
        sums = np.stack([steps[:, max(0, t - 3) : t + 1].sum(axis=1) for t in range(steps.shape[1])], axis=1)
        return {"sums": 2 * (sums * data["scale"][:, None])[..., None]}
