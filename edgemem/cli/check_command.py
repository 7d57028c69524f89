"""``edgemem check``: hold a bundle to its model again, later, elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.cli.export_tools import checking, needs_export_packages, print_report
from edgemem.console import console, print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against", metavar="SOURCE", help="What it was exported from (default: the decoder in the bundle itself)."
)
@click.option("--steps", type=click.IntRange(min=2), help="Steps to stream (default: twice past the longest window).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random data.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(bundle: Path, against: str | None, steps: int | None, seed: int, as_json: bool) -> None:
    """Verify BUNDLE: its files, its graph, and its numbers against the torch model.

    A bundle of a module of your own needs --against package.module:factory: no code is taken from a bundle.
    """
    from edgemem.bundle import open_bundle

    opened = open_bundle(bundle)
    if against is None and opened.manifest.model is None:
        raise click.UsageError(
            f"{bundle} holds a module of your own, exported from {opened.manifest.source.get('name')}: "
            "name it with --against package.module:factory. No code is taken from a bundle."
        )
    needs_export_packages()
    from edgemem.export import check as run_check
    from edgemem.export import load_source, source_of

    source = load_source(against) if against else source_of(opened)
    with checking(console(stderr=True)) as (announce, progress):
        announce("checking the bundle against the model")
        report = run_check(bundle, source, steps=steps, seed=seed, progress=progress)
    if as_json:
        print_json({"bundle": str(bundle), **report.to_json()})
    else:
        print_report(console(), report.to_json())
