"""A model of your own: any torch module that declares what it carries can be exported and streamed.

The two methods below are the whole protocol. From the folder of this file::

    edgemem export own_model:create --out own-bundle
    edgemem run own-bundle samples.csv

``create`` takes no arguments: load your trained weights in it. (Here they are random.)
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from edgemem import Contract, InputSpec, OutputSpec, StateSpec


class SensorGRU(nn.Module):
    """Six values in (an accelerometer and a gyroscope, say), three out (a position, say), and a GRU between."""

    def __init__(self, features: int = 6, outputs: int = 3, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.gru = nn.GRU(features, width, layers, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def contract(self) -> Contract:
        """What the model takes, gives, and carries from call to call; shapes are those of one stream."""
        return Contract(
            input=InputSpec("features", (self.gru.input_size,)),
            output=OutputSpec("predictions", (self.head.out_features,)),
            states=(StateSpec("gru.hidden", (self.gru.num_layers, self.gru.hidden_size)),),
            position="none",
        )

    def forward(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``[B, T, F]`` to ``[B, T, O]``, and the new state, under the names of the contract."""
        # Streams come first in every state of edgemem; torch's GRU wants its layers first.
        hidden = state["gru.hidden"].transpose(0, 1).contiguous()  # [layers, B, width]
        read, hidden = self.gru(x, hidden)
        return self.head(read), {"gru.hidden": hidden.transpose(0, 1)}


def create() -> SensorGRU:
    """The module to export."""
    return SensorGRU()
