"""Targets of ``edgemem build`` that are no engines: what others read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from edgemem.bundle import open_bundle
from edgemem.cli.export_tools import checking, needs_export_packages
from edgemem.console import console, headed, print_json, print_table

SHERPA = "sherpa-onnx"


@dataclass(frozen=True)
class FormatOptions:
    """What else the user says.

    Attributes:
        max_batch: Most streams in one call.
        entries: ``KEY=VALUE`` of each entry to add to the metadata.
        as_json: Whether to print JSON.
    """

    max_batch: int | None
    entries: Sequence[str]
    as_json: bool


def write_leapp(bundle: Path, out: Path, options: FormatOptions) -> None:
    """Write a bundle as a LEAPP description."""
    needs_export_packages("onnx_ir")
    from edgemem.adopt.leapp import write_leapp as write

    _say(bundle, "leapp", write(open_bundle(bundle), out), "a LEAPP description", options.as_json)


def write_sherpa(bundle: Path, out: Path, options: FormatOptions) -> None:
    """Write a bundle as one ONNX file with metadata."""
    needs_export_packages("onnx_ir")
    from edgemem.adopt.metadata import write_with_metadata

    written = write_with_metadata(open_bundle(bundle), out, dict(map(_entry, options.entries)))
    _say(bundle, SHERPA, written, "an ONNX file with metadata as sherpa-onnx has them", options.as_json)


def _entry(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.BadParameter(f"{text!r} is not KEY=VALUE.", param_hint="--metadata")
    return key, value


def _say(bundle: Path, target: str, written: Path, what: str, as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(bundle), "target": target, "description": str(written)})
    else:
        console().print(headed(str(written), f": {what}."))


def write_triton(bundle: Path, out: Path, options: FormatOptions) -> None:
    """Write every model of a bundle to a model repository for Triton."""
    needs_export_packages("onnx_ir", "onnxruntime")
    from edgemem.triton.config import Limits
    from edgemem.triton.repository import FLAVOURS, write_repository

    limits = Limits() if options.max_batch is None else Limits(batch=options.max_batch)
    with checking(console(stderr=True)) as (announce, _):
        served = write_repository(open_bundle(bundle), out, flavours=FLAVOURS, limits=limits, announce=announce)
    if options.as_json:
        print_json({"bundle": str(bundle), "target": "triton", "models": [asdict(model) for model in served]})
        return
    rows = [
        [model.name, model.backend, "in the server" if model.holds_state else "in each request", model.missing or "yes"]
        for model in served
    ]
    print_table(console(), f"Models in {out}", ["model", "backend", "state", "written"], rows)


FORMATS: dict[str, Callable[[Path, Path, FormatOptions], None]] = {
    "leapp": write_leapp,
    SHERPA: write_sherpa,
    "triton": write_triton,
}
"""What writes each: the bundle's folder, what to write, what else the user says."""

_WRITTEN = {SHERPA: "file"}


def write_format(target: str | None, bundle: Path, out: Path | None, options: FormatOptions) -> None:
    """Write a bundle for a target of :data:`FORMATS`."""
    if options.entries and target != SHERPA:
        raise click.UsageError(f"--metadata is for --target {SHERPA}.")
    assert target is not None
    if out is None:
        raise click.UsageError(f"--target {target} needs --out: the {_WRITTEN.get(target, 'folder')} to write.")
    FORMATS[target](bundle, out, options)
