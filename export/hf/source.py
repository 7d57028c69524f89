"""A model of transformers as a source."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edgemem.contract import Contract
from edgemem.export.hf.adapter import HuggingFaceModel
from edgemem.export.hf.chunk import TwoGraphs
from edgemem.export.sources import Graphs, Source
from edgemem.manifest import TRANSFORMERS


@dataclass(frozen=True)
class TransformersSource(Source):
    """A causal language model of transformers.

    Attributes:
        graphs: Traces a recurrent model into a step graph and a chunk graph; ``None`` for a model with attention only,
            whose one graph takes any number of time steps.
    """

    module: HuggingFaceModel
    kind: str = TRANSFORMERS
    graphs: TwoGraphs | None = None

    def trace(self, module: nn.Module, contract: Contract) -> Graphs:
        """One graph or two."""
        return super().trace(module, contract) if self.graphs is None else self.graphs(module, contract)

    def reference(self, x: Tensor, indices: Tensor | None = None) -> Tensor:
        """The model's own full-sequence pass."""
        return self.module.full_sequence(x, indices)
