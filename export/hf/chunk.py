"""The graphs of a bundle: one of a single step, and one of a chunk that continues from any state.

Each model has its own code for a chunk, and some of it starts from zero whatever the state. The first of these forms
that works is used:

1. ``native``: the model's own code, if it equals its steps from a warm state and can be traced;
2. ``scan`` or ``block``: the same with the model's recurrence replaced by a scan, or by one block without a loop
   (:mod:`edgemem.export.hf.scans`);
3. ``lifted``: the step's graph, run over the time steps by one ONNX Scan: bit-equal to stepping, and not faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import onnx_ir as ir
import torch
from torch import nn

from edgemem.contract import Contract
from edgemem.errors import ExportError
from edgemem.export.graph import export_graph
from edgemem.export.hf.adapter import Form, HuggingFaceModel, advance
from edgemem.export.hf.lift import lift, unseal
from edgemem.export.passes.sites import remove_sites
from edgemem.manifest import GraphFile
from edgemem.protocol import example_input, initial_tensors
from edgemem.streaming.sealed import Sealed

STEP, CHUNK = "step.onnx", "chunk.onnx"
Strategy = Literal["native", "scan", "block", "lifted", "none"]

_TOLERANCE = 1e-4  # in the scale of 1 + |logit|
_WARM, _TRIED = 5, 7  # steps before the chunk, and in it


class TwoGraphs:
    """Traces a model into a step graph and a chunk graph; see :meth:`edgemem.export.sources.Source.trace`.

    Args:
        model: The model.

    Attributes:
        strategy: The form of the chunk in the last trace; ``"none"`` before the first, and for single steps.
    """

    def __init__(self, model: HuggingFaceModel) -> None:
        self.model = model
        self.strategy: Strategy = "none"

    def __call__(self, module: nn.Module, contract: Contract) -> list[tuple[GraphFile, ir.Model]]:
        """The graphs of ``module``: the model, or the model with its rings written inside.

        Raises:
            ExportError: The step cannot be traced.
        """
        step = export_graph(module, contract, max_time=1)
        graphs = [(GraphFile(STEP, 1, 1), step)]
        self.strategy = "none"
        if contract.max_chunk > 1:
            chunk, self.strategy = self._chunk(module, contract, step)
            graphs.append((GraphFile(CHUNK, 2, contract.max_chunk), chunk))
        return graphs

    def _chunk(self, module: nn.Module, contract: Contract, step: ir.Model) -> tuple[ir.Model, Strategy]:
        for form in self._exact_forms():
            with self.model.in_form(form):
                try:
                    return export_graph(module, contract), self._strategy(form)
                except ExportError:
                    continue
        return self._lifted(module, contract, step), "lifted"

    def _strategy(self, form: Form) -> Strategy:
        if form == "own":
            return "native"
        return "scan" if self.model.has_loop else "block"

    @staticmethod
    def _lifted(module: nn.Module, contract: Contract, step: ir.Model) -> ir.Model:
        if all(spec.update == "replace" for spec in contract):
            return lift(step, contract)  # such a step has no attention, so no marks
        # Within a chunk, later steps must find the entries of earlier ones in the rings.
        sealed = replace(Sealed(module).contract(), output_indices=contract.output_indices)
        body = export_graph(Sealed(module), sealed, max_time=1)
        remove_sites(body)
        chunk = lift(body, sealed)
        unseal(chunk, sealed, contract)
        return chunk

    def _exact_forms(self) -> Iterator[Form]:
        """Forms whose chunks, from a warm state, equal the steps."""
        forms: tuple[Form, ...] = ("scan",) if self.model.has_recurrences else ("own",)
        for form in forms:
            error = chunk_error(self.model, form)
            if error <= _TOLERANCE:  # false for NaN
                yield form


def chunk_error(model: HuggingFaceModel, form: Form) -> float:
    """Largest difference between a chunk and its steps from the same warm state, in the scale of ``1 + |logit|``.

    Infinite if the form cannot be run.
    """
    contract = model.contract()
    warm, tried = min(_WARM, contract.max_chunk), min(_TRIED, contract.max_chunk)
    x = example_input(contract, 2, warm + tried, torch.Generator().manual_seed(0))
    worst = 0.0
    with torch.inference_mode():
        state = initial_tensors(contract, 2)
        for t in range(warm):
            state = advance(model, x[:, t : t + 1], state)[2]
        try:
            with model.in_form(form):
                chunk, after = model(x[:, warm:], state)
        except Exception:
            return float("inf")
        end = state
        for t in range(tried):
            logits, _, end = advance(model, x[:, warm + t : warm + t + 1], end)
            error = (chunk[:, t : t + 1] - logits).abs() / (1 + logits.abs())
            worst = max(worst, float(error.max())) if not error.isnan().any() else float("inf")
        for spec in contract:
            if spec.update == "replace":
                error = (after[spec.name] - end[spec.name]).abs().double() / (1 + end[spec.name].abs().double())
                worst = max(worst, float(error.max())) if not error.isnan().any() else float("inf")
    return worst
