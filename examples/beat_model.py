"""The model of ``beats.py``: causal convolutions and a GRU that report heartbeats while samples arrive.

``edgemem export beat_model:spotter --out bundle`` calls :func:`spotter`, which loads the trained weights. Its state is
a dict with a list inside. ``discover`` finds every tensor of it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.export import discover
from edgemem.streaming import CausalConv1d, Streaming

FOLDER = Path("demo/beats")
"""Where ``beats.py`` writes by default. The environment variable ``BEATS`` names another folder."""
WEIGHTS = "weights.pt"

State = dict[str, Any]


class BeatSpotter(nn.Module):
    """Takes one raw sample a step and returns one logit: did a heartbeat peak 0.2 seconds ago?"""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList([CausalConv1d(1, width, 5), CausalConv1d(width, width, 5, dilation=3)])
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, 1)

    def initial_state(self, batch: int) -> State:
        """The last inputs of each convolution, and the GRU's state, for ``batch`` streams."""
        pasts = [layer.initial_state(batch) for layer in self.convolutions]  # type: ignore[operator]
        return {"convolutions": pasts, "gru": torch.zeros(1, batch, self.gru.hidden_size)}

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Samples ``[B, T, 1]`` to logits ``[B, T, 1]``, and the new state."""
        state = state or self.initial_state(x.shape[0])
        x, pasts = x.mT, []
        for layer, past in zip(self.convolutions, state["convolutions"], strict=True):
            x, new = layer(x, past)
            x = F.gelu(x)
            pasts.append(new)
        read, hidden = self.gru(x.mT, state["gru"])
        return self.head(read), {"convolutions": pasts, "gru": hidden}


def spotter() -> Streaming:
    """The trained model, ready for export."""
    model = BeatSpotter()
    model.load_state_dict(torch.load(Path(os.environ.get("BEATS", FOLDER)) / WEIGHTS, weights_only=True))
    return discover(model, torch.zeros(1, 1, 1))
