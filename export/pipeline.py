"""From traced graphs to the files of a bundle: the passes, in order.

A graph arrives here with its axes named and without torch's notes (:mod:`edgemem.export.graph` sees to both). Each
pass states in its own file what must hold before it and what holds after it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir
from torch import nn

from edgemem.contract import Contract
from edgemem.export.passes.embed_contract import embed_contract
from edgemem.export.passes.halve import halve_matrices, halve_tables
from edgemem.export.passes.narrow_rings import narrow_rings
from edgemem.export.passes.native_form import native_file, native_form
from edgemem.export.passes.norms import divide_by_roots
from edgemem.export.passes.quantize import quantize
from edgemem.export.passes.sites import remove_sites
from edgemem.export.passes.store_weights import store_weights
from edgemem.export.stored import StoredWeights
from edgemem.manifest import GraphFile
from edgemem.precision import Precision


@dataclass
class Job:
    """The graphs of one bundle on their way through the passes.

    Attributes:
        graphs: The graphs and their files; passes change the graphs in place.
        native: Their native forms, by file.
        contract: The contract of every graph; a pass that changes states changes it.
        module: What the graphs were traced from.
        precision: The precision that was asked for.
        folder: Where the files are written.
        traced_in_dtype: Whether the module computes in the precision's dtype.
        store_whole: Whether to store every tensor of the module, so that it can be rebuilt from the bundle.
        stored: What became of the large weights.
    """

    graphs: list[tuple[GraphFile, ir.Model]]
    contract: Contract
    module: nn.Module
    precision: Precision
    folder: Path
    traced_in_dtype: bool
    store_whole: bool
    stored: StoredWeights = field(default_factory=StoredWeights)
    native: dict[str, ir.Model] = field(default_factory=dict)

    @property
    def models(self) -> list[ir.Model]:
        """The graphs, in all their forms."""
        return [*(model for _, model in self.graphs), *self.native.values()]

    @property
    def is_quantized(self) -> bool:
        """Whether matrices are stored as integers."""
        return self.precision.weights is not None


@dataclass(frozen=True)
class Pass:
    """One step of the export.

    Attributes:
        stage: What people are told when it begins; ``"{weights}"`` stands for the kind of integers. Empty: nothing.
        applies: Whether a job needs it.
        run: Does it.
    """

    stage: str
    applies: Callable[[Job], bool]
    run: Callable[[Job], None]


PASSES = (
    Pass(
        "quantising the weights to {weights}",
        lambda job: job.is_quantized,
        lambda job: quantize(job.models, job.module, job.precision, job.stored),
    ),
    Pass(
        "",
        lambda job: job.is_quantized and job.precision.dtype == "float32",
        lambda job: halve_tables(job.models, job.module, job.stored),
    ),
    Pass(
        "",
        lambda job: job.precision.dtype != "float32" and not job.traced_in_dtype,
        lambda job: halve_matrices(job.models, job.module, job.precision, job.stored),
    ),
    Pass("", lambda job: job.precision.memory is not None, lambda job: _narrow(job)),
    Pass("", lambda job: True, lambda job: _write_quotients(job)),
    Pass("", lambda job: True, lambda job: _split_forms(job)),
    Pass(
        "writing weights and graph",
        lambda job: True,
        lambda job: store_weights(
            job.models, job.module, job.folder, whole=job.store_whole, instead=job.stored.files()
        ),
    ),
    Pass("", lambda job: True, lambda job: embed_contract(job.models, job.contract)),
    Pass("", lambda job: True, lambda job: _save(job)),
)
"""Every pass, in the order in which they run."""


def run_passes(job: Job, announce: Callable[[str], None]) -> None:
    """Run the passes that a job needs.

    Args:
        job: The job; its graphs and ``stored`` are changed.
        announce: Called with a line for each stage.

    Raises:
        ExportError: A pass finds nothing to change, or a file cannot be written.
    """
    for step in PASSES:
        if step.applies(job):
            if step.stage:
                announce(step.stage.format(weights=job.precision.weights))
            step.run(job)


def _narrow(job: Job) -> None:
    assert job.precision.memory is not None
    job.contract = narrow_rings([model for _, model in job.graphs], job.contract, job.precision.memory)


def _write_quotients(job: Job) -> None:
    for model in job.models:
        divide_by_roots(model)


def _split_forms(job: Job) -> None:
    for at, (graph, model) in enumerate(job.graphs):
        native = native_form(model) if job.precision.dtype == "float32" else None
        if native is not None:
            name = native_file(graph.file)
            job.graphs[at], job.native[name] = (replace(graph, native=name), model), native
        remove_sites(model)


def _save(job: Job) -> None:
    standard = {graph.file: model for graph, model in job.graphs}
    for file, model in {**standard, **job.native}.items():
        ir.save(model, job.folder / file)
