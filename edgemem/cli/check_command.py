"""``edgemem check``: compare a bundle with its model again, later or on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from edgemem.bundle import Bundle, open_bundle
from edgemem.cli.export_tools import checking, equal_to, needs_export_packages, print_report
from edgemem.cli.options import MOST_STEPS, count
from edgemem.cli.text_scores import print_scores, score_file, scores_json
from edgemem.cli.transformers_options import TRUST_REMOTE_CODE_HELP
from edgemem.console import console, print_json, print_table
from edgemem.manifest import ADOPTED, TRANSFORMERS


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--against",
    "sources",
    multiple=True,
    metavar="SOURCE",
    help="What BUNDLE was made of (default: the decoder in the bundle itself); twice for a bundle of two files.",
)
@click.option("--steps", type=count(2, MOST_STEPS), help="Steps to stream (default: twice past the longest window).")
@click.option("--trust-remote-code", is_flag=True, help=TRUST_REMOTE_CODE_HELP)
@click.option(
    "--text",
    "text_file",
    type=click.Path(path_type=Path),
    help="Also measure how well BUNDLE predicts this text, in bits per byte; with --against, SOURCE too.",
)
@click.option(
    "--recorded",
    type=click.Path(path_type=Path),
    help="Compare with recorded inputs and outputs (.npz) instead of the torch model; needs no torch.",
)
@click.option("--seed", type=count(0), default=0, show_default=True, help="Seed of the random data.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(
    bundle: Path,
    sources: tuple[str, ...],
    steps: int | None,
    trust_remote_code: bool,
    text_file: Path | None,
    recorded: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Verify BUNDLE: its files, its graph, and its numbers compared with the torch model.

    A bundle of your own module needs --against package.module:factory, a bundle of a transformers model needs --against
    FOLDER: a bundle contains no code. An adopted bundle is compared with a loop around its own graph, or around the
    ONNX file that --against names.
    """
    opened, against = open_bundle(bundle), sources[0] if sources else None
    if recorded is not None:
        _check_recorded(opened, recorded, as_json)
        return
    if opened.manifest.source.kind == ADOPTED:
        if text_file is not None:
            raise click.UsageError("--text is for a model of tokens that edgemem exported; this bundle was adopted.")
        _check_adopted(opened, sources, steps, as_json)
        return
    if len(sources) > 1:
        raise click.UsageError(f"--against is named {len(sources)} times; only an adopted bundle is made of two files.")
    if against is None and opened.manifest.model is None:
        name = opened.manifest.source.name
        if opened.manifest.source.kind == TRANSFORMERS:
            what, how = "a transformers model", "FOLDER"
        else:
            what, how = "your own module", "package.module:factory"
        raise click.UsageError(
            f"{bundle} has the graph of {what}, exported from {name}: name it with --against {how}. "
            "A bundle contains no code."
        )
    needs_export_packages()
    from edgemem.export import check as run_check
    from edgemem.export import load_source, source_of

    options = asdict(opened.manifest.source.options)
    source = load_source(against, trust_remote_code=trust_remote_code, **options) if against else source_of(opened)
    with checking(console(stderr=True)) as (announce, progress):
        announce("checking the bundle against the model")
        report = run_check(bundle, source, steps=steps, is_original=against is not None, seed=seed, progress=progress)
        scores = None
        if text_file is not None:
            scores = score_file(opened, source if against is not None else None, text_file, progress)
    if as_json:
        shown = {} if scores is None else {"text": scores_json(scores)}
        print_json({"bundle": str(bundle), **report.to_json(), **shown})
    else:
        print_report(console(), report.to_json())
        if scores is not None:
            print_scores(console(), scores)


def _check_adopted(bundle: Bundle, sources: Sequence[str], steps: int | None, as_json: bool) -> None:
    needs_export_packages("onnx", "onnx_ir", "onnxruntime")
    from edgemem.adopt import recheck
    from edgemem.adopt.options import CHECK_STEPS

    steps = steps or CHECK_STEPS
    with checking(console(stderr=True)) as (announce, progress):
        announce("comparing the bundle with a loop by hand")
        found = recheck(bundle, [Path(source) for source in sources], steps, progress)
    against = " and ".join(sources)
    if as_json:
        print_json({"bundle": str(bundle.path), "against": against or None, "steps": steps, **asdict(found)})
        return
    console().print(equal_to(against or "a loop by hand around its own graph", steps, **asdict(found)))


def _check_recorded(bundle: Bundle, path: Path, as_json: bool) -> None:
    import edgemem
    from edgemem.runtimes.recorded import read_recording, replay

    recording = read_recording(path, bundle.contract)
    with edgemem.open(bundle) as session:
        found = replay(session, recording, bundle.manifest.precision)
    if as_json:
        print_json({"bundle": str(bundle.path), "recorded": str(path), **asdict(found)})
        return
    rows = [[way, f"{found.steps} steps", f"{error:.1e}"] for way, error in found.errors.items()]
    title = f"Equal to {path.name} within {found.tolerance:.0e} of each channel's spread"
    if found.change_tolerance is not None:
        most = f"at most {found.change_tolerance:.0%}"
        title = f"Outputs change by {found.change:.2%} of their standard deviation ({most})"
    print_table(console(), title, ["streamed", "length", "largest difference"], rows, right=["largest difference"])
