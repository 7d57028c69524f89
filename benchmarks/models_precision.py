"""In which precisions families of transformers export, and which NVIDIA's compiler accepts: a table in docs/models.md.

``python benchmarks/models_precision.py --rows FILE`` traces a small random checkpoint of every family in the page's
first table once, and exports it in each precision. Each bundle is compared with the float32 model if possible, and
TensorRT-RTX compiles every graph. ``--rows`` keeps the results, so that a run continues where an earlier one stopped.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from models_table import PAGE, put, small_source
from torch import nn

import edgemem
from edgemem.bundle import Bundle
from edgemem.console import console
from edgemem.contract import Contract
from edgemem.errors import EdgememError
from edgemem.export import ExportOptions, export_bundle
from edgemem.export.hf.chunk import TwoGraphs
from edgemem.export.hf.source import TransformersSource
from edgemem.export.sources import Graphs
from edgemem.runtimes.trt.builder import build_engine
from edgemem.runtimes.trt.flavour import Flavour, load_flavour
from edgemem.runtimes.trt.options import BuildOptions

STEPS = 24
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "fp16": {"dtype": "fp16"},
    "int8 weights": {"weights": "int8", "block_size": 16},
    "int4 weights": {"weights": "int4", "block_size": 16},
}
"""Name of each precision → the options of the export."""
UNCHECKED = "int4 weights"
"""Rounding to 4 bits changes a small random model more than a check allows: it is exported and run unchecked."""


def measure(family: str, flavour: Flavour) -> dict[str, str]:
    """Export a family in every precision and compile it. For each precision: what went wrong, or nothing."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        source = _traced_once(small_source(family, Path(folder, "checkpoint"))[0])
        for precision, options in PRECISIONS.items():
            checked = precision != UNCHECKED and bool(options)
            try:
                bundle = export_bundle(
                    source, Path(folder, "bundle"), ExportOptions(steps=STEPS, verify=checked, **options)
                )
                _run(bundle)
            except EdgememError as error:
                found[precision] = f"not exported: {_first_line(error)}"
                continue
            found[precision] = _compile(bundle, flavour)
    return found


class _TracedOnce(TwoGraphs):
    """Keeps the graphs of the first trace: tracing takes longer than everything after it."""

    kept: Graphs | None = None

    def __call__(self, module: nn.Module, contract: Contract) -> Graphs:
        """Copies of the graphs."""
        if self.kept is None:
            self.kept = super().__call__(module, contract)
        return [(graph, model.clone()) for graph, model in self.kept]


def _traced_once(source: TransformersSource) -> TransformersSource:
    return source if source.graphs is None else replace(source, graphs=_TracedOnce(source.module))


def _run(bundle: Bundle) -> None:
    """Stream a few tokens in ONNX Runtime.

    Raises:
        EdgememError: It does not load, or outputs NaN.
    """
    with edgemem.open(bundle.path, "onnxruntime", threads=1, device="cpu", guard=True) as session:
        stream = session.stream()
        stream.feed(np.arange(9) % 7)
        stream.step(1)


def _compile(bundle: Bundle, flavour: Flavour) -> str:
    """Compile every graph of a bundle; the first error, or nothing."""
    for graph in bundle.manifest.graphs:
        try:
            build_engine(bundle, graph, flavour, BuildOptions())
        except EdgememError as error:
            return f"{graph.file}: {_first_line(error)}"
    return ""


def _first_line(error: EdgememError) -> str:
    return error.message.splitlines()[0][:160]


def table(rows: dict[str, dict[str, str]]) -> str:
    """The rows as Markdown: yes if it exports and compiles, otherwise the number of a note."""
    notes: dict[str, int] = {}

    def cell(said: str) -> str:
        if not said:
            return "yes"
        said = re.sub(r"\s+", " ", said).replace("|", "\\|")
        number = notes.setdefault(said, len(notes) + 1)
        return f"{'no' if said.startswith('not exported') else 'exports'} ({number})"

    lines = [f"| family | {' | '.join(PRECISIONS)} |", f"| --- |{' --- |' * len(PRECISIONS)}"]
    lines += [
        f"| {family} | {' | '.join(cell(found[precision]) for precision in PRECISIONS)} |"
        for family, found in sorted(rows.items())
    ]
    lines += ["", *(f"{number}. {said}" for said, number in notes.items())]
    return "\n".join(lines).rstrip()


def families(page: str) -> Sequence[str]:
    """The families of the page's first table."""
    part = page.partition("<!-- families -->")[2].partition("<!-- end of families -->")[0]
    return re.findall(r"^\| (\w[\w.-]*) \|(?! exported with)", part, re.MULTILINE)


@click.command()
@click.option("--only", multiple=True, help="Measure these families alone.")
@click.option("--rows", "file", type=click.Path(path_type=Path), required=True, help="JSON file that keeps the rows.")
def main(only: tuple[str, ...], file: Path) -> None:
    """Measure families, and write the table of precisions in docs/models.md."""
    out = console(stderr=True)
    flavour = load_flavour("tensorrt_rtx")
    rows: dict[str, dict[str, str]] = json.loads(file.read_text()) if file.is_file() else {}
    for family in only or families(PAGE.read_text(encoding="utf-8")):
        if family in rows and not only:
            continue
        try:
            rows[family] = measure(family, flavour)
        except EdgememError as error:
            rows[family] = dict.fromkeys(PRECISIONS, f"not exported: {_first_line(error)}")
        out.print(family, rows[family])
        file.write_text(json.dumps(rows, indent=1))
    page = put(PAGE.read_text(encoding="utf-8"), "precisions", table(rows))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
