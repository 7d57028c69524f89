"""Modules with one mistake each: what they get is shown in docs/own-model.md."""

from __future__ import annotations

import torch
from torch import nn

from edgemem import Contract, InputSpec, OutputSpec, StateSpec


class SensorLSTM(nn.Module):
    """The one of the page."""

    def __init__(self, features=6, outputs=3, width=64, layers=2):
        super().__init__()
        self.lstm = nn.LSTM(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x, state=None):
        y, state = self.lstm(x, state)
        return self.head(y), state


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 64, batch_first=True)
        self.hidden = None

    def forward(self, x):
        y, self.hidden = self.lstm(x, self.hidden)
        return y


class KeepsAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()

    def forward(self, x, state=None):
        return self.encoder(x), self.encoder.hidden


class TakesNoState(SensorLSTM):
    def forward(self, x):
        return super().forward(x)


class ReturnsOutputAlone(SensorLSTM):
    def forward(self, x, state=None):
        return super().forward(x, state)[0]


class TimeFirst(SensorLSTM):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 64)


class Attention(nn.Module):
    def forward(self, x, cache):
        cache = x if cache is None else torch.cat([cache, x], dim=1)
        return x + cache.mean(dim=1, keepdim=True), cache


class Grows(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, x, cache=None):
        return self.attention(x, cache)


class IgnoresItsPast(SensorLSTM):
    def forward(self, x, state=None):
        return super().forward(x, None)


class AveragesOverTheCall(SensorLSTM):
    def forward(self, x, state=None):
        return super().forward(x - x.mean(dim=1, keepdim=True), state)


class KeepsTheFirstStep(SensorLSTM):
    def forward(self, x, state=None):
        return super().forward(x, state)[0], super().forward(x[:, :1], state)[1]


class ChangesDtype(SensorLSTM):
    def forward(self, x, state=None):
        y, (h, c) = super().forward(x, state and tuple(value.float() for value in state))
        return y, (h, c.double())

    def initial_state(self, batch):
        return torch.zeros(2, batch, 64), torch.zeros(2, batch, 64)


class NestsDifferently(SensorLSTM):
    def initial_state(self, batch):
        return {"h": torch.zeros(2, batch, 64), "c": torch.zeros(2, batch, 64)}

    def forward(self, x, state):
        return super().forward(x, (state["h"], state["c"]))


class Divides(SensorLSTM):
    def __init__(self):
        super().__init__()
        self.norm = Norm()

    def forward(self, x, state=None):
        return super().forward(self.norm(x), state)


class Norm(nn.Module):
    def forward(self, x):
        return (x - x) / (x - x)


class CountsInPython(SensorLSTM):
    def initial_state(self, batch):
        return {"h": torch.zeros(2, batch, 64), "c": torch.zeros(2, batch, 64), "steps": 0}

    def forward(self, x, state):
        y, (h, c) = super().forward(x, (state["h"], state["c"]))
        return y, {"h": h, "c": c, "steps": state["steps"] + x.shape[1]}


class DropsTheEdges(SensorLSTM):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(6, 6, 3)

    def forward(self, x, state=None):
        return super().forward(self.conv(x.mT).mT, state)


class FixesTime(SensorLSTM):
    def forward(self, x, state=None):
        y, state = super().forward(x, state)
        for _ in range(x.shape[1]):
            y = y * 1.0
        return y, state


class Branches(SensorLSTM):
    def forward(self, x, state=None):
        return super().forward(x * 2 if x.sum() > 10 else x + x, state)


class LayersFirst(SensorLSTM):
    """Declares its states itself, and gives them as torch does."""

    def contract(self):
        return Contract(
            (InputSpec("features", (6,)),),
            (OutputSpec("predictions", (3,)),),
            (StateSpec("lstm.h", (2, 64)), StateSpec("lstm.c", (2, 64))),
            position="none",
        )

    def forward(self, x, state):
        y, (h, c) = self.lstm(x, tuple(state[name].transpose(0, 1).contiguous() for name in ("lstm.h", "lstm.c")))
        return self.head(y), {"lstm.h": h, "lstm.c": c}


class ForgetsState(LayersFirst):
    def forward(self, x, state):
        return super().forward(x, state)[0], {}


class NeverChanges(LayersFirst):
    def forward(self, x, state):
        return super().forward(x, state)[0], {name: value + 0 for name, value in state.items()}


class NoEffect(LayersFirst):
    def contract(self):
        own = super().contract()
        return Contract((own.input,), (own.output,), (*own.states, StateSpec("level", (1,))), position="none")

    def forward(self, x, state):
        y, new = super().forward(x, state)
        return y, {**{k: v.transpose(0, 1) for k, v in new.items()}, "level": torch.ones_like(state["level"])}
