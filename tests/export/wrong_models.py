"""Modules whose stream is wrong in one way each. Each runs, traces, and is wrong only across calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgemem import Contract, InputSpec, OutputSpec, StateSpec

State = Mapping[str, Tensor]


class Recurrent(nn.Module):
    """A GRU with small outputs; subclasses return its state wrongly."""

    scale = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.gru = nn.GRU(3, 8, batch_first=True)
        self.out = nn.Linear(8, 2, bias=False)

    def contract(self) -> Contract:
        return Contract(
            (InputSpec("features", (3,)),),
            (OutputSpec("y", (2,)),),
            (StateSpec("h", (8,)),),
            position="none",
            max_chunk=8,
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, _ = self.gru(x, self.start(state["h"])[None])
        return self.out(y) * self.scale, {"h": self.carried(y, state["h"])}

    def start(self, h: Tensor) -> Tensor:
        return h

    def carried(self, y: Tensor, h: Tensor) -> Tensor:
        return y[:, -1]


class ReturnsTheFirstState(Recurrent):
    scale = 1e-5

    def carried(self, y, h):
        return y[:, 0]


class Forgets(Recurrent):
    scale = 1e-6

    def start(self, h):
        return h * 1e-3


class RescalesTheState(Recurrent):
    def carried(self, y, h):
        return y[:, -1] * 0.9995


class DelaysTheState(Recurrent):
    """The state after a call is that before its last step."""

    def carried(self, y, h):
        return torch.cat([h[:, None], y], dim=1)[:, -2]


class RoundsTheState(Recurrent):
    def carried(self, y, h):
        return y[:, -1].half().float()


class SwapsRows(Recurrent):
    def carried(self, y, h):
        return y[:, -1].flip(0)


class MixesRows(Recurrent):
    def carried(self, y, h):
        return y[:, -1] * 0.99 + y[:, -1].mean(dim=0, keepdim=True) * 0.01


class LosesOneElement(Recurrent):
    def carried(self, y, h):
        return torch.cat([y[:, -1, :-1], torch.zeros_like(y[:, -1, :1])], dim=-1)


class SwapsElements(Recurrent):
    def carried(self, y, h):
        return y[:, -1][:, [1, 0, 2, 3, 4, 5, 6, 7]]


class AveragesOverTheCall(Recurrent):
    scale = 1e-4

    def forward(self, x, state):
        y, new = super().forward(x, state)
        return y - y.mean(dim=1, keepdim=True) * 0.01, new


class LooksAhead(Recurrent):
    def forward(self, x, state):
        y, new = super().forward(x, state)
        return y + 0.01 * torch.cat([y[:, 1:], y[:, -1:]], dim=1), new


class KeepsACallCounter(Recurrent):
    """Matters after 5,000 calls only."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x, state):
        self.calls += 1
        y, new = super().forward(x, state)
        return (y if self.calls < 5000 else y * 0), new


class TwoStates(Recurrent):
    def contract(self) -> Contract:
        return Contract(
            (InputSpec("features", (3,)),),
            (OutputSpec("y", (2,)),),
            (StateSpec("slow", (3,)), StateSpec("fast", (3,))),
            position="none",
            max_chunk=4,
        )

    def forward(self, x, state):
        """Two running sums of the last entries with other decays."""
        weights = torch.arange(x.shape[1], device=x.device).flip(0).float()[:, None]
        slow, fast = (
            state[name] * decay ** x.shape[1] + (x * decay**weights).sum(1)
            for name, decay in (("slow", 0.9), ("fast", 0.5))
        )
        return x[..., :2] + (state["slow"] - state["fast"])[:, None, :2] * 1e-3, self.named(slow, fast)

    def named(self, slow, fast):
        return {"slow": slow, "fast": fast}


class SwapsStates(TwoStates):
    def named(self, slow, fast):
        return {"slow": fast, "fast": slow}


class CountsInFloat(nn.Module):
    """A phase from a float32 state that counts steps."""

    dtype = "float32"

    def contract(self) -> Contract:
        return Contract(
            (InputSpec("features", (1,)),),
            (OutputSpec("y", (1,)),),
            (StateSpec("count", (), self.dtype),),
            position="none",
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        counts = state["count"][:, None] + torch.arange(x.shape[1])
        return x * torch.remainder(counts, 7)[..., None], {"count": (counts[:, -1] + 1).to(state["count"].dtype)}


class CastsACounter(CountsInFloat):
    """The counter is an integer, but the phase is computed in float32."""

    dtype = "int64"

    def forward(self, x, state):
        counts = state["count"][:, None] + torch.arange(x.shape[1])
        return x * torch.remainder(counts.float(), 7)[..., None], {"count": counts[:, -1] + 1}


class CountsDown(CountsInFloat):
    def forward(self, x, state):
        counts = state["count"][:, None] - torch.arange(x.shape[1])
        return x * torch.remainder(counts, 7)[..., None], {"count": counts[:, -1] - 1}


class CountsEvents(CountsInFloat):
    """A phase from a float32 state that counts the steps in which the sample is positive."""

    def forward(self, x, state):
        counts = state["count"][:, None] + (x[..., 0] > 0).float().cumsum(1)
        return x * torch.remainder(counts, 7)[..., None], {"count": counts[:, -1]}


class CountsInInt32(CountsInFloat):
    dtype = "int32"

    def forward(self, x, state):
        counts = state["count"][:, None] + torch.arange(x.shape[1], dtype=torch.int32)
        return x * torch.remainder(counts, 7)[..., None], {"count": counts[:, -1] + 1}


class SharesACallCounter(Recurrent):
    """All instances count their calls together, which no number shows before there were many."""

    calls = 0

    def forward(self, x, state):
        SharesACallCounter.calls += 1
        y, new = super().forward(x, state)
        return y if SharesACallCounter.calls < 1e9 else y * 0, new


_calls = [0]


class KeepsACallCounterElsewhere(Recurrent):
    def forward(self, x, state):
        _calls[0] += 1
        y, new = super().forward(x, state)
        return y if _calls[0] < 1e9 else y * 0, new


class FadesIn(CountsInFloat):
    """Right: the state counts to 20, and then it changes nothing and is not changed."""

    def forward(self, x, state):
        counts = (state["count"][:, None] + torch.arange(1, x.shape[1] + 1)).clamp(max=20.0)
        return x * (counts / 20)[..., None], {"count": counts[:, -1]}


class CountsEventsToALimit(CountsInFloat):
    """Right: the same of events."""

    def forward(self, x, state):
        counts = (state["count"][:, None] + (x[..., 0] > 0).float().cumsum(1)).clamp(max=20.0)
        return x * (counts / 20)[..., None], {"count": counts[:, -1]}


def _running_maximum(x: Tensor) -> Tensor:
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    return x[:, None, :].masked_fill(later, -torch.inf).amax(-1)


class KeepsTheLargest(CountsInFloat):
    """Right: the largest sample so far, which may change once or twice."""

    def forward(self, x, state):
        largest = torch.maximum(state["count"][:, None], _running_maximum(x[..., 0]))
        return x * largest[..., None], {"count": largest[:, -1]}


class InsistsOnFloat32(Recurrent):
    """Right, but its code refuses float64."""

    def start(self, h):
        if h.dtype != torch.float32:
            raise TypeError("float32 only")
        return h


class CountsRight(CastsACounter):
    def forward(self, x, state):
        counts = state["count"][:, None] + torch.arange(x.shape[1])
        return x * torch.remainder(counts, 7)[..., None].float(), {"count": counts[:, -1] + 1}


class Heads(Recurrent):
    """A right model with outputs of every kind."""

    NAMES = (
        "offset", "offset_large", "zero", "one_hot", "saturated", "tiny", "tiny_offset", "huge", "constant", "softmax",
        "log_softmax", "tanh", "norm", "copied", "sign", "clamped", "product", "square", "exponential", "difference",
        "one_channel_tiny",
    )  # fmt: skip

    def contract(self) -> Contract:
        outputs = tuple(OutputSpec(name, (2,)) for name in self.NAMES)
        whole = (OutputSpec("index", (), "int64"), OutputSpec("flag", (2,), "bool"))
        return replace(super().contract(), output_specs=outputs + whole)

    def forward(self, x, state):
        y, new = super().forward(x, state)
        one_hot = torch.nn.functional.one_hot(y.argmax(-1), 2).float()
        return {
            "offset": y * 2e-3 + 1000,
            "offset_large": y + 1e6,
            "zero": torch.relu(y - 100),
            "one_hot": one_hot,
            "saturated": torch.sigmoid(y * 10 + 18),
            "tiny": y * 1e-8,
            "tiny_offset": y * 1e-8 + 1,
            "huge": y * 1e8,
            "constant": torch.sigmoid(y * 0 + 0.3),
            "softmax": y.softmax(-1),
            "log_softmax": (y * 30).log_softmax(-1),
            "tanh": torch.tanh(y * 20),
            "norm": nn.functional.layer_norm(y, (2,)),
            "copied": x[..., :2],
            "sign": torch.sign(y),
            "clamped": y.clamp(-0.01, 0.01),
            "product": y * x[..., :2],
            "square": (y * 100) ** 2,
            "exponential": torch.exp(y * 20),
            "difference": (y + 1000) - 1000,
            "one_channel_tiny": y * torch.tensor([1.0, 1e-9]),
            "index": y.argmax(-1),
            "flag": y > 0,
        }, new
