"""``edgemem export``: makes a verified bundle of a checkpoint, a configuration or a factory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from edgemem.bundle import Bundle
from edgemem.cli.export_tools import checking, needs_export_packages, print_report
from edgemem.cli.options import MOST_STEPS, count, option_group
from edgemem.cli.transformers_options import TransformersOptions
from edgemem.console import console, headed, print_json, readable_bytes
from edgemem.precision import DEFAULT_BLOCK_SIZE, MEMORY_DTYPES
from edgemem.wording import counted

_MOST_NOTES = 5


@click.command()
@click.argument("source")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder of the bundle to write.")
@click.option("--sealed", is_flag=True, help="Write rings inside the graph: every state is a whole input and output.")
@click.option("--max-chunk", type=count(1), help="Most time steps of one call (default: the model's own).")
@click.option("--steps", type=count(2, MOST_STEPS), help="Steps of the check (default: twice past the longest window).")
@click.option(
    "--dtype",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    help="Type of weights, matrix products and windows (default: the configuration's, or fp32).",
)
@click.option("--weights", type=click.Choice(["int8", "int4"]), help="Store the large matrices as scaled integers.")
@click.option(
    "--block-size",
    type=click.Choice(["16", "32", "64", "128"]),
    help="Rows of a matrix that share a scale, with --weights (default: 32).",
)
@click.option(
    "--memory-dtype",
    type=click.Choice(tuple(MEMORY_DTYPES)),
    help="Store rings in fewer bits where the model computes in float32.",
)
@click.option(
    "--allow-change",
    is_flag=True,
    help="Also write a bundle whose outputs change too much in reduced precision, marked as unverified: to measure a "
    "device before training.",
)
@click.option(
    "--record", type=click.Path(path_type=Path), help="Also write inputs and the model's outputs to this .npz file."
)
@option_group("transformers", TransformersOptions)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(
    source: str,
    out: Path,
    transformers: TransformersOptions,
    as_json: bool,
    block_size: str | None,
    record: Path | None,
    **options: Any,
) -> None:
    """Export SOURCE to a bundle and verify it.

    SOURCE is a checkpoint's folder (config.json, model.safetensors), the folder of a transformers model
    (docs/models.md), only a config.json (random weights: to measure a device before training), or
    package.module:factory, a function that returns your own torch module (docs/own-model.md).
    """
    if block_size is not None and options["weights"] is None:
        raise click.UsageError("--block-size goes with --weights: it is the number of weights that share a scale.")
    needs_export_packages()
    transformers.check()
    from edgemem.export import ExportOptions, export_bundle, load_source
    from edgemem.export.targets.lint import notes
    from edgemem.export.verify.expected import recorded
    from edgemem.runtimes.recorded import write_recording

    errors = console(stderr=True)
    with checking(errors) as (announce, _):
        if errors.is_terminal:
            announce(f"loading {source}")
        loaded = load_source(source, **asdict(transformers))
    if loaded.has_random_weights:
        warning = " a configuration has no weights. Good for measuring, not for using."
        errors.print(headed("Random weights:", warning, "yellow"))
    if (narrow := loaded.stored_dtype) and options["dtype"] is None and loaded.default_dtype == "float32":
        errors.print(f"The checkpoint is in {narrow}, the bundle in float32. To keep 16 bits: --dtype fp16 or bf16.")
    with checking(errors) as (announce, progress):
        wanted = ExportOptions(block_size=int(block_size or DEFAULT_BLOCK_SIZE), **options)
        bundle = export_bundle(loaded, out, wanted, announce=announce, progress=progress)
        if record is not None:
            announce(f"recording the model's outputs in {record}")
            write_recording(record, recorded(loaded))
    for note in notes(bundle)[:_MOST_NOTES]:
        errors.print(headed("TensorRT:", f" {note}", "yellow"))
    if as_json:
        print_json({"bundle": str(out), "fingerprint": bundle.fingerprint, **bundle.manifest.to_json()})
    else:
        _print_bundle(bundle)


def _print_bundle(bundle: Bundle) -> None:
    """Print what was written, and what its check measured."""
    contract = bundle.contract
    files = sum(size for _, size in bundle.manifest.files.values())
    out_console = console()
    out_console.print(
        headed(
            str(bundle.path),
            f": {readable_bytes(files)}; state {readable_bytes(contract.state_bytes)} a stream in "
            f"{counted(len(contract.states), 'tensor')}; up to {counted(contract.max_chunk, 'step')} a call.",
        )
    )
    if not bundle.manifest.precision.is_plain:
        out_console.print(f"{bundle.manifest.precision}.")
    print_report(out_console, bundle.manifest.verification)
