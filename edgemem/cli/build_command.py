"""``edgemem build``: TensorRT engines from a bundle, or a folder to build them from on a device."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemem.bundle import RECIPE, Bundle, open_bundle
from edgemem.cli.export_tools import checking
from edgemem.cli.formats import FORMATS, FormatOptions, write_format
from edgemem.cli.options import count
from edgemem.console import console, headed, print_json, print_table, readable_bytes
from edgemem.errors import EngineError, MissingDependencyError, RuntimeUnavailableError
from edgemem.extras import how_to_install
from edgemem.machine.facts import board
from edgemem.runtimes.trt.engine import build_to, shipped_folder
from edgemem.runtimes.trt.flavour import Flavour, installed, load_flavour
from edgemem.runtimes.trt.options import TOP_K_LIMIT, BuildOptions
from edgemem.runtimes.trt.pack import Recipe, pack, read_recipe
from edgemem.runtimes.trt.targets import TARGETS, Target, narrowed, of_flavour

if TYPE_CHECKING:
    from edgemem.export.targets.lint import Finding

_LINT_HINT = how_to_install("onnx")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    type=click.Choice([*TARGETS, *FORMATS]),
    help="What to build for (default: local, or the target that BUNDLE was packed for).",
)
@click.option("--out", "-o", type=click.Path(path_type=Path), help="What to write (default: inside BUNDLE).")
@click.option("--max-batch", type=count(1), help="Maximum number of streams in one call (default: 1).")
@click.option(
    "--workspace",
    type=count(1),
    metavar="MIB",
    help="Maximum scratch memory (default: the target's).",
)
@click.option(
    "--top-k",
    type=count(0, TOP_K_LIMIT),
    help="Let the engine pick the K largest outputs (default: 0).",
)
@click.option(
    "--compute-capability",
    "capabilities",
    multiple=True,
    metavar="X.Y",
    help="With --target rtx: build only for these GPUs; repeat for several.",
)
@click.option(
    "--metadata",
    "entries",
    multiple=True,
    metavar="KEY=VALUE",
    help="With --target sherpa-onnx: an entry to add, such as model_type=gtcrn; repeat for several.",
)
@click.option("--check-only", is_flag=True, help="List what the target cannot take, and build nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(
    bundle: Path,
    target: str | None,
    out: Path | None,
    max_batch: int | None,
    workspace: int | None,
    top_k: int | None,
    capabilities: tuple[str, ...],
    entries: tuple[str, ...],
    check_only: bool,
    as_json: bool,
) -> None:
    """Build TensorRT engines from BUNDLE.

    \b
    local                    for the GPU here, with tensorrt
    rtx                      for any RTX GPU, with tensorrt_rtx; needs no GPU
    orin-nano, orin-nx,      on such a board: with its TensorRT;
    orin-agx, thor           elsewhere: check the graph, and pack a folder to copy there
    leapp                    no engine: a LEAPP description (YAML, ONNX, initial values) in the folder --out
    sherpa-onnx              no engine: the file --out, ONNX with metadata as sherpa-onnx has them
    triton                   a model repository for NVIDIA's Triton server in the folder --out (docs/fleet.md)

    The engines are written to the folder `engines` in BUNDLE, where `edgemem run --runtime tensorrt` finds them. BUNDLE
    can be a folder that was packed for a board: `edgemem build FOLDER` on that board needs no options.
    """
    if target in FORMATS or entries:
        return write_format(target, bundle, out, FormatOptions(max_batch, entries, as_json))
    recipe = read_recipe(bundle) if (bundle / RECIPE).is_file() else None
    chosen = TARGETS[target or (recipe.target if recipe else "local")]
    options = _options(recipe, chosen, max_batch, workspace, top_k, capabilities)
    chosen = narrowed(chosen, options.compute_capabilities)
    opened = open_bundle(bundle)
    packs = _packs(chosen, bundle if recipe and target is None and not check_only else None)
    with checking(console(stderr=True)) as (announce, progress):
        flavour = None if packs else _flavour(chosen, optional=check_only)
        if chosen.name == "local" and flavour is not None:
            chosen = of_flavour(flavour)
        findings = _lint(opened, chosen, announce, required=check_only)
        for finding in (findings or []) if not check_only else []:
            if finding.level == "warning":
                announce(f"note: {finding}")
        result: dict[str, Any] = {
            "bundle": str(opened.path),
            "fingerprint": opened.fingerprint,
            "target": chosen.name,
            "options": options.to_json(),
            "linted": findings is not None,
            "findings": [asdict(finding) for finding in findings or []],
        }
        if not check_only:
            _refuse(findings, chosen)
            if packs:
                where = out or opened.path.with_name(f"{opened.path.resolve().name}-{chosen.name}")
                pack(opened, chosen, Recipe(chosen.name, options, tuple(map(str, findings or []))), where)
                result |= {"packed": str(where), "command": f"edgemem build {where.name}"}
            elif flavour is not None:
                result |= _build(opened, flavour, options, out, announce, progress)
        elif flavour is not None:
            result |= _parse(opened, flavour, announce)
    if as_json:
        print_json(result)
    else:
        _print(result, chosen)
    if check_only:
        _refuse(findings, chosen)


def _options(
    recipe: Recipe | None,
    target: Target,
    max_batch: int | None,
    workspace: int | None,
    top_k: int | None,
    capabilities: tuple[str, ...],
) -> BuildOptions:
    """The options of the command line, else of the recipe, else of the target."""
    options = recipe.options if recipe else BuildOptions(workspace_bytes=target.workspace_bytes)
    given: dict[str, Any] = {
        "max_batch": max_batch,
        "workspace_bytes": None if workspace is None else workspace << 20,
        "top_k": top_k,
        "compute_capabilities": capabilities or None,
    }
    return replace(options, **{name: value for name, value in given.items() if value is not None})


def _packs(target: Target, packed: Path | None) -> bool:
    """Whether the target is a board, and this machine is not that board.

    Args:
        target: The target.
        packed: The folder, if it was packed for the target already.

    Raises:
        EngineError: This machine is another board, so its engines would not run on the target; or there is nothing to
            pack.
    """
    here = board() or ""
    if not target.is_device or target.board in here:
        return False
    if "Jetson" in here:
        raise EngineError(
            f"the target is {target.title}, this machine is {here}.",
            hint="Build here with --target local, or pack for another board on a workstation.",
        )
    if packed is not None:
        raise EngineError(
            f"{packed} is packed for {target.title}, and this machine is none.",
            hint=f"Copy it to the board, and build there with: edgemem build {packed.resolve().name}",
        )
    return True


def _flavour(target: Target, *, optional: bool) -> Flavour | None:
    """The target's TensorRT; ``None`` if it is optional and does not work here."""
    if optional and not installed(target.flavour):
        return None
    try:
        return load_flavour(target.flavour)
    except RuntimeUnavailableError:
        if optional:
            return None
        raise


def _lint(bundle: Bundle, target: Target, announce: Callable[[str], None], *, required: bool) -> list[Finding] | None:
    """Findings; ``None`` if the packages that read ONNX are not installed, as on a device."""
    missing = [name for name in ("onnx", "onnx_ir") if importlib.util.find_spec(name) is None]
    if missing and required:
        raise MissingDependencyError(f"--check-only needs {' and '.join(missing)}.", hint=_LINT_HINT)
    if missing:
        announce(f"note: the nodes were not checked: {' and '.join(missing)} not installed ({_LINT_HINT})")
        return None
    from edgemem.export.targets.lint import lint

    announce(f"checking the graphs for {target.title}")
    return lint(bundle, target)


def _refuse(findings: list[Finding] | None, target: Target) -> None:
    if findings:
        from edgemem.export.targets.lint import refuse_errors

        refuse_errors(findings, target)


def _parse(bundle: Bundle, flavour: Flavour, announce: Callable[[str], None]) -> dict[str, Any]:
    from edgemem.runtimes.trt.builder import parse

    announce(f"reading the graphs with {flavour.name} {flavour.version}")
    for graph in bundle.manifest.graphs:
        parse(bundle, graph, flavour)
    return {"parsed_by": f"{flavour.name} {flavour.version}"}


def _build(
    bundle: Bundle,
    flavour: Flavour,
    options: BuildOptions,
    out: Path | None,
    announce: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    folder = out or shipped_folder(bundle, flavour)
    began = time.perf_counter()
    made = build_to(folder, bundle, flavour, options, announce=announce, progress=progress)
    return {
        "built": str(folder),
        "seconds": round(time.perf_counter() - began, 3),
        "engines": [sidecar.to_json() for sidecar in made],
    }


def _print(result: dict[str, Any], target: Target) -> None:
    on = console()
    if "built" in result:
        size = sum(engine["plan_bytes"] for engine in result["engines"])
        on.print(
            headed(
                result["built"],
                f": {len(result['engines'])} engine{'s' * (len(result['engines']) > 1)} for "
                f"{target.title}, {readable_bytes(size)}, built in {result['seconds']:.1f} s.",
            )
        )
    elif "packed" in result:
        on.print(
            headed(
                result["packed"],
                f": the bundle and a recipe for {target.title} ({target.system}). "
                f"Copy the folder there and run:\n  {result['command']}",
            )
        )
    elif result["findings"]:
        print_table(
            on,
            f"What {target.title} cannot take, or takes at a cost",
            ("level", "rule", "where", "what", "way out"),
            [
                (f["level"], f["rule"], f"{f['graph']}: {f['where']}", f["message"], f["way_out"])
                for f in result["findings"]
            ],
        )
    else:
        on.print(f"{result['bundle']}: nothing that {target.title} cannot take.")
    if "parsed_by" in result:
        on.print(f"Read without errors by {result['parsed_by']}.")
