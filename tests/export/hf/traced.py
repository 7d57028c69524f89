"""A transformers model that is traced once."""

from __future__ import annotations

from edgemem.export.hf.chunk import TwoGraphs


class TracedTwoGraphs(TwoGraphs):
    """Keeps the graphs of the first trace: tracing takes longer than all other work of an export."""

    kept = None

    def __call__(self, module, contract):
        if self.kept is None:
            self.kept = super().__call__(module, contract)
        return [(graph, model.clone()) for graph, model in self.kept]
