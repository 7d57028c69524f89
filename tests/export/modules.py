"""Torch modules that follow the streaming protocol, and modules that break it in one way each."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgemem import Contract, InputSpec, OutputSpec, StateSpec

State = Mapping[str, Tensor]


class Gru(nn.Module):
    """Three features in, two predictions out; the hidden state is carried."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 16, batch_first=True)
        self.out = nn.Linear(16, 2)

    def contract(self) -> Contract:
        return Contract(
            (InputSpec("features", (3,)),),
            (OutputSpec("predictions", (2,)),),
            (StateSpec("0.gru.h", (1, 16)),),
            position="none",
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, h = self.gru(x, state["0.gru.h"].transpose(0, 1))
        return self.out(y), {"0.gru.h": h.transpose(0, 1)}


class Lstm(Gru):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 16, num_layers=2, batch_first=True)

    def contract(self) -> Contract:
        return Contract(
            (InputSpec("features", (3,)),),
            (OutputSpec("predictions", (2,)),),
            (StateSpec("lstm.h", (2, 16)), StateSpec("lstm.c", (2, 16))),
            position="none",
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        # nn.LSTM wants the layers first; torch exports a stack of layers from contiguous states alone.
        h, c = (state[name].transpose(0, 1).contiguous() for name in ("lstm.h", "lstm.c"))
        y, (h, c) = self.lstm(x, (h, c))
        return self.out(y), {"lstm.h": h.transpose(0, 1), "lstm.c": c.transpose(0, 1)}


class RingSum(nn.Module):
    """Sum of the last four features, through an appended ring."""

    window = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def contract(self) -> Contract:
        return Contract(
            (InputSpec("features", (1,)),),
            (OutputSpec("sums", (1,)),),
            (StateSpec("0.ring.x", (1, self.window, 1), update="append"),),
            max_chunk=self.window,
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        offsets = torch.arange(x.shape[1])
        slots = torch.arange(self.window)
        start = state["position"][:, None]
        age = torch.remainder(start - 1 - slots, self.window)[:, None, :] + offsets[:, None] + 1  # [B, T, W]
        live = (age < self.window) & (age - offsets[:, None] - 1 < start[..., None])
        past = (live.float() @ state["0.ring.x"][:, 0]) * self.scale
        own = offsets[:, None] - offsets
        here = ((own >= 0) & (own < self.window)).float() @ x
        return past + here * self.scale, {"0.ring.x": x[:, None]}


class Raises(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        raise ValueError("not today")


class ForgetsState(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x, state)[0], {}


class InventsState(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, new = super().forward(x, state)
        return y, {**new, "0.gru.extra": y}


class ReshapesState(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, new = super().forward(x, state)
        return y, {"0.gru.h": new["0.gru.h"][..., :8]}


class RetypesState(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, new = super().forward(x, state)
        return y, {"0.gru.h": new["0.gru.h"].double()}


class ReturnsTensorAlone(Gru):
    def forward(self, x: Tensor, state: State) -> Tensor:  # type: ignore[override]
        return super().forward(x, state)[0]


class NoContract(nn.Module):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        return x, {}


class KeepsStateAsAttribute(Gru):
    """Exports without an error, and the graph never looks at its past."""

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, h = self.gru(x, torch.zeros(1, x.shape[0], 16))
        return self.out(y), {"0.gru.h": h.transpose(0, 1)}


class RemembersInAnAttribute(Gru):
    """Works in torch, one stream at a time."""

    hidden: Tensor | None = None

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, self.hidden = self.gru(x, self.hidden)
        return self.out(y), {"0.gru.h": self.hidden.transpose(0, 1)}


class LayersFirst(Gru):
    """Gives its state as torch's GRU does: layers before streams."""

    def contract(self) -> Contract:
        own = super().contract()
        return Contract((own.input,), (own.output,), (StateSpec("0.gru.h", (2, 16)),), position="none")

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, _ = super().forward(x, {"0.gru.h": state["0.gru.h"][:, :1]})
        return y, {"0.gru.h": state["0.gru.h"].transpose(0, 1)}


class NeverChangesState(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        return super().forward(x, state)[0], {"0.gru.h": state["0.gru.h"] + 0}


class IgnoresOneState(Gru):
    """Reads the second state, to no effect."""

    def contract(self) -> Contract:
        own = super().contract()
        return Contract((own.input,), (own.output,), (*own.states, StateSpec("0.gru.count", (1,))), position="none")

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, new = super().forward(x, state)
        return y, {**new, "0.gru.count": torch.ones_like(state["0.gru.count"])}


class BakesInPosition(nn.Module):
    """Counts calls in a Python int, which the trace turns into a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.5))
        self.calls = 0

    def contract(self) -> Contract:
        return Contract(
            (InputSpec("features", (1,)),), (OutputSpec("sums", (1,)),), (StateSpec("0.sum.s", (1,)),), position="none"
        )

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        self.calls += 1
        total = state["0.sum.s"] + x.sum(1) * self.decay
        return total[:, None] + torch.zeros_like(x) * self.calls + float(self.calls > 6), {"0.sum.s": total}


class BranchesOnData(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        if x.sum() > 0:
            return super().forward(x, state)
        return super().forward(-x, state)


class FixesTime(Gru):
    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        y, new = super().forward(x, state)
        for _ in range(x.shape[1]):
            y = y * 1.0
        return y, new


class FloatCounter(nn.Module):
    """Reads its position as float32: wrong from 2^24 on."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def contract(self) -> Contract:
        return Contract((InputSpec("features", (1,)),), (OutputSpec("y", (1,)),), (StateSpec("0.sum.s", (1,)),))

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        sums = state["0.sum.s"][:, None] + x.cumsum(1) * self.scale
        positions = state["position"][:, None] + torch.arange(x.shape[1])
        parity = torch.div(positions, 2, rounding_mode="floor") * 2 - positions  # a float32 division in ONNX
        return sums + parity[..., None], {"0.sum.s": sums[:, -1]}


def not_a_module() -> object:
    return 3


def fails() -> nn.Module:
    raise RuntimeError("no weights here")
