"""``edgemem export``: from a checkpoint, a configuration or a factory to a verified bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.cli.export_tools import checking, needs_export_packages, print_report
from edgemem.console import console, print_json, readable_bytes


@click.command()
@click.argument("source")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder of the bundle to write.")
@click.option("--sealed", is_flag=True, help="Write rings inside the graph: every state whole in, whole out.")
@click.option("--max-chunk", type=click.IntRange(min=1), help="Most time steps of one call (default: the model's own).")
@click.option(
    "--steps", type=click.IntRange(min=2), help="Steps of the check (default: twice past the longest window)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(source: str, out: Path, sealed: bool, max_chunk: int | None, steps: int | None, as_json: bool) -> None:
    """Export SOURCE to a bundle, and verify it.

    SOURCE is a checkpoint's folder (config.json, model.safetensors), a config.json alone (random weights: to measure a
    device before anything is trained), or package.module:factory, a function that returns a torch module which follows
    the streaming protocol (docs/own-model.md).
    """
    needs_export_packages()
    from edgemem.export import export_bundle, load_source

    errors = console(stderr=True)
    loaded = load_source(source)
    if loaded.has_random_weights:
        errors.print("[yellow]Random weights:[/] a configuration holds none. Good for measuring, not for using.")
    with checking(errors) as (announce, progress):
        bundle = export_bundle(
            loaded, out, sealed=sealed, max_chunk=max_chunk, steps=steps, announce=announce, progress=progress
        )
    if as_json:
        print_json({"bundle": str(out), "fingerprint": bundle.fingerprint, **bundle.manifest.to_json()})
        return
    contract = bundle.contract
    files = sum(size for _, size in bundle.manifest.files.values())
    out_console = console()
    out_console.print(
        f"[bold]{out}[/]: {readable_bytes(files)}; state {readable_bytes(contract.state_bytes)} a stream in "
        f"{len(contract.states)} tensors; up to {contract.max_chunk} steps a call."
    )
    print_report(out_console, bundle.manifest.verification)
