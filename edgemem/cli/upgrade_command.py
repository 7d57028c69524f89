"""``edgemem upgrade``: an older bundle in today's format."""

from __future__ import annotations

from pathlib import Path

import click

from edgemem.cli.export_tools import checking, needs_export_packages
from edgemem.console import console, print_json
from edgemem.manifest import MANIFEST_FORMAT


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder to write (default: in place of BUNDLE).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def upgrade(bundle: Path, out: Path | None, as_json: bool) -> None:
    """Write BUNDLE again: today's manifest and contract, and its graphs with edgemem's own operators.

    The weights stay as they are. The new graphs are compared with the old ones before BUNDLE is replaced. Exporting the
    model again gives more: attention over a memory becomes one operator only then.
    """
    needs_export_packages()
    from edgemem.export import upgrade as run_upgrade

    with checking(console(stderr=True)) as (announce, _):
        done = run_upgrade(bundle, out, announce)
    if as_json:
        print_json(done.to_json())
        return
    on = console()
    if not done.changed:
        on.print(f"{bundle} is up to date. Nothing was written.", markup=False)
        return
    on.print(f"{done.bundle.path}: version {done.version} → {MANIFEST_FORMAT.versions[-1]}.", markup=False)
    if done.operators:
        found = ", ".join(f"{count} {name}" for name, count in sorted(done.operators.items()))
        on.print(
            f"Native form: {found}; equal to the standard form within {done.largest:.1e} of each channel's spread."
        )
    else:
        on.print(f"No native form: {done.why_no_form}.")
    if done.leaves_attention:
        on.print("Its attention stays in standard operators. Export the model again to have it in one operator.")
    kept = "resume as before" if done.keeps_snapshots else "do not resume: the contract is of another version now"
    on.print(f"Snapshots of the old bundle {kept}.")
