"""Which families of transformers edgemem exports, and how exactly: the table in docs/models.md.

``python benchmarks/models_table.py`` builds a small random checkpoint of every family that the installed transformers
holds and that carries more than keys and values, exports it from its folder as a user would, and streams 256 tokens in
single steps and in chunks, compared with the model's own full-sequence pass. ``--rows`` names a file that keeps the
measurements, so that a run continues where an earlier one stopped; ``--only`` measures some families again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import re
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from families import Finding, causal_families, find, tiny_model

from edgemem.console import console
from edgemem.errors import EdgememError, ExportError
from edgemem.export import ExportOptions, export_bundle, hf
from edgemem.export.hf.quiet import quiet
from edgemem.export.hf.source import TransformersSource

PAGE = Path(__file__).parent.parent / "docs" / "models.md"
STEPS = 256
BOUNDS: tuple[dict[str, str | int], ...] = (
    {},
    {"memory": "sinks=4,window=32"},
    {"memory": "window=32"},
    {"max_length": 300},
)
"""Options that are tried for a family; the first that suits it is used."""


@dataclass(frozen=True)
class Row:
    """The measurements of a family.

    Attributes:
        family: Its ``model_type``.
        options: How it was exported.
        states: Kinds of its states.
        chunk: The form of its chunk graph; empty for a model with one graph.
        step_error: Largest difference on logits, in the scale of ``1 + |logit|``, streaming 256 tokens step by step.
        chunk_error: The same in mixed chunks.
        reason: Why it was refused; then there are no measurements.
    """

    family: str
    options: str = ""
    states: str = ""
    chunk: str = ""
    step_error: float = 0.0
    chunk_error: float = 0.0
    reason: str = ""


def measure(family: str) -> Row:
    """Export a small checkpoint of a family; the measurements are those of its check."""
    with tempfile.TemporaryDirectory() as folder:
        source, options = small_source(family, Path(folder, "checkpoint"))
        written = export_bundle(source, Path(folder, "bundle"), ExportOptions(steps=STEPS))
        contract, report = written.contract, written.manifest.verification
        kinds = dict.fromkeys(state.name.partition(".")[2] for state in contract)
        return Row(
            family,
            " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items()),
            ", ".join(kinds),
            source.graphs.strategy if source.graphs else "",
            report["step_error"],
            max(report["chunk_errors"].values(), default=0.0),
        )


def small_source(family: str, checkpoint: Path) -> tuple[TransformersSource, dict[str, str | int]]:
    """A small random checkpoint of a family, saved and loaded from its folder with the first options that suit it."""
    with quiet():
        model: Any = tiny_model(family)
        model.save_pretrained(checkpoint)
    for options in BOUNDS[:-1]:
        try:
            return hf.load(checkpoint, **options), options  # type: ignore[arg-type]
        except ExportError:
            continue
    return hf.load(checkpoint, **BOUNDS[-1]), BOUNDS[-1]  # type: ignore[arg-type]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| family | exported with | state of a layer | chunk graph | step error | chunk error |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if not row.reason:
            options = f"`{row.options}`" if row.options else "nothing more"
            lines.append(
                f"| {row.family} | {options} | {row.states} | {row.chunk or 'one graph'} "
                f"| {row.step_error:.1e} | {row.chunk_error:.1e} |"
            )
    return "\n".join(lines)


def refusals(rows: Sequence[Row]) -> str:
    """The families that were refused, as Markdown."""
    lines = ["| family | why it is refused |", "| --- | --- |"]
    lines += [f"| {row.family} | {row.reason} |" for row in rows if row.reason]
    return "\n".join(lines)


def is_recurrent(finding: Finding) -> bool:
    """Whether a family has states other than keys and values."""
    return any(not re.match(r"(window|sinks|summary)\.", kind) for kind in finding.states)


def put(page: str, name: str, text: str) -> str:
    """Replace the text between the marks ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}"


@click.command()
@click.option("--only", multiple=True, help="Measure only these families.")
@click.option("--rows", "file", type=click.Path(path_type=Path), required=True, help="JSON file that keeps the rows.")
def main(only: tuple[str, ...], file: Path) -> None:
    """Measure families, and write the table of docs/models.md."""
    out = console(stderr=True)
    rows = {row["family"]: Row(**row) for row in json.loads(file.read_text())} if file.is_file() else {}
    others: list[str] = []
    for family in only or causal_families():
        finding = find(family)
        if finding.kind in ("fixed", "bounded") and not is_recurrent(finding):
            others.append(family)
            continue
        if finding.kind == "not built":
            out.print(f"{family}: {finding.reason}")
            continue
        if finding.kind == "refused":
            row = Row(family, reason=finding.reason)
        elif family in rows and not only:
            continue
        else:
            try:
                row = measure(family)
            except EdgememError as error:
                row = Row(family, reason=error.message.splitlines()[0])
        out.print(row)
        rows[family] = row
        file.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1))
    done = sorted(rows.values(), key=lambda row: row.family)
    page = put(PAGE.read_text(encoding="utf-8"), "families", table(done))
    page = put(page, "refused", refusals(done))
    if not only:
        page = put(page, "decoders", textwrap.fill(", ".join(others) + ".", 120))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
