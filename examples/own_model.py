"""Export your own torch module: any module that takes a state and returns the new state can be streamed.

The file shows five, each in a dozen lines: an LSTM, a GRU, a stack of causal convolutions, an encoder of several inputs
and outputs, and a state-space model written by hand. Run from the folder of this file::

    edgemem export own_model:lstm --out own-bundle
    edgemem run own-bundle samples.csv

The command calls ``lstm`` or another function at the end of this file. These functions take no arguments. Yours loads
trained weights; here they are random. Each model takes six values at a time, as from an accelerometer and a gyroscope.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgemem import InputSpec, OutputSpec
from edgemem.export import discover
from edgemem.streaming import CausalConv1d, Streaming

State = tuple[Tensor, Tensor]


class SensorLSTM(nn.Module):
    """An LSTM and a linear layer, written without edgemem in mind."""

    def __init__(self, features: int = 6, outputs: int = 3, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """``[B, T, F]`` to ``[B, T, O]``, and torch's pair of states."""
        read, state = self.lstm(x, state)
        return self.head(read), state


class SensorGRU(nn.Module):
    """A GRU with a learned initial state."""

    def __init__(self, features: int = 6, outputs: int = 3, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.gru = nn.GRU(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)
        self.start = nn.Parameter(0.1 * torch.randn(layers, 1, width))

    def initial_state(self, batch: int) -> Tensor:
        """The state of ``batch`` streams before their first step, ``[layers, B, width]``."""
        return self.start.expand(-1, batch, -1)

    def forward(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, F]`` to ``[B, T, O]``, and the new state."""
        read, hidden = self.gru(x, hidden)
        return self.head(read), hidden


class SensorConvolutions(nn.Module):
    """Dilated causal convolutions: each keeps its last inputs as state."""

    def __init__(self, features: int = 6, outputs: int = 3, width: int = 32) -> None:
        super().__init__()
        sizes = (features, width, width, width)
        self.layers = nn.ModuleList(CausalConv1d(sizes[i], sizes[i + 1], 5, dilation=4**i) for i in range(3))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, past: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """``[B, T, F]`` to ``[B, T, O]``, and each layer's past by its name."""
        x, new = x.mT, {}  # torch's convolutions want channels before time
        for name, layer in self.layers.named_children():
            x, new[f"layer{name}"] = layer(x, past and past[f"layer{name}"])
            x = torch.relu(x)
        return self.head(x.mT), new


class SensorEncoder(nn.Module):
    """Four samples are one step. A stream is given once where the sensor is worn. Two outputs."""

    def __init__(self, features: int = 6, places: int = 5, width: int = 32) -> None:
        super().__init__()
        self.convolution = CausalConv1d(features, width, 8, stride=4)
        self.place = nn.Embedding(places, width)
        self.activity, self.cadence = nn.Linear(width, 4), nn.Linear(width, 1)

    def forward(self, x: dict[str, Tensor], past: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """``imu`` ``[B, 4 * T, F]`` and ``place`` ``[B]`` to two outputs ``[B, T, ...]``."""
        read, past = self.convolution(x["imu"].mT, past)
        read = torch.tanh(read.mT + self.place(x["place"])[:, None])
        return {"activity": self.activity(read), "cadence": self.cadence(read)}, past


class SensorStateSpace(nn.Module):
    """``h_t = a h_(t-1) + (W x)_t``, a decay ``a`` for each channel: a real diagonal SSM (arXiv 2206.11893)."""

    def __init__(self, features: int = 6, outputs: int = 3, width: int = 32) -> None:
        super().__init__()
        self.into = nn.Linear(features, width)
        self.log_rate = nn.Parameter(torch.linspace(-6, 0, width))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """``[B, T, F]`` to ``[B, T, O]``, and ``h`` ``[B, width]`` after the last step: all steps of a call at once."""
        rate, time = self.log_rate.exp(), torch.arange(x.shape[1])
        age = time[:, None] - time  # [T, T]
        weight = torch.exp(-rate * age.clamp_min(0)[..., None]) * (age >= 0)[..., None]  # [T, T, width]
        hs = torch.einsum("tsn,bsn->btn", weight, self.into(x)) + torch.exp(-rate * (time[:, None] + 1)) * h[:, None]
        return self.head(torch.tanh(hs)), hs[:, -1]


def lstm() -> Streaming:
    """``discover`` finds everything: the state starts at zero, its shapes, its batch axes."""
    return discover(SensorLSTM(), torch.zeros(1, 1, 6))


def gru() -> Streaming:
    """The module's ``initial_state`` gives the state at the start."""
    return discover(SensorGRU(), torch.zeros(1, 1, 6))


def convolutions() -> Streaming:
    """The state is a dict."""
    return discover(SensorConvolutions(), torch.zeros(1, 1, 6))


def encoder() -> Streaming:
    """Inputs are named by the example. That a step takes four samples is found by running the module."""
    example = {"imu": torch.zeros(1, 1, 6), "place": torch.zeros(1, dtype=torch.int64)}
    return discover(SensorEncoder(), example, held=["place"])


def state_space() -> Streaming:
    """Declared by hand, without probing. A call takes at most 64 steps: its cost grows with their square."""
    return Streaming(
        SensorStateSpace(),
        state=lambda batch: torch.zeros(batch, 32),
        inputs=InputSpec("features", (6,)),
        outputs=OutputSpec("predictions", (3,)),
        names=["ssm.h"],
        max_chunk=64,
    )
