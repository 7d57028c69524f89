"""Targets of ``edgemem build`` that are no engines: what others read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import click

from edgemem.bundle import open_bundle
from edgemem.cli.export_tools import checking, needs_export_packages
from edgemem.console import console, headed, print_json, print_table


def write_leapp(bundle: Path, out: Path, max_batch: int | None, as_json: bool) -> None:
    """Write a bundle as a LEAPP description."""
    needs_export_packages("onnx_ir")
    from edgemem.adopt.leapp import write_leapp as write

    _say(bundle, "leapp", write(open_bundle(bundle), out), "a LEAPP description", as_json)


def write_sherpa(bundle: Path, out: Path, max_batch: int | None, as_json: bool) -> None:
    """Write a bundle as one ONNX file with metadata."""
    needs_export_packages("onnx_ir")
    from edgemem.adopt.metadata import write_with_metadata

    written = write_with_metadata(open_bundle(bundle), out)
    _say(bundle, "sherpa-onnx", written, "an ONNX file with metadata as sherpa-onnx has them", as_json)


def _say(bundle: Path, target: str, written: Path, what: str, as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(bundle), "target": target, "description": str(written)})
    else:
        console().print(headed(str(written), f": {what}."))


def write_triton(bundle: Path, out: Path, max_batch: int | None, as_json: bool) -> None:
    """Write every model of a bundle to a model repository for Triton."""
    needs_export_packages("onnx_ir", "onnxruntime")
    from edgemem.triton.config import Limits
    from edgemem.triton.repository import FLAVOURS, write_repository

    limits = Limits() if max_batch is None else Limits(batch=max_batch)
    with checking(console(stderr=True)) as (announce, _):
        served = write_repository(open_bundle(bundle), out, flavours=FLAVOURS, limits=limits, announce=announce)
    if as_json:
        print_json({"bundle": str(bundle), "target": "triton", "models": [asdict(model) for model in served]})
        return
    rows = [
        [model.name, model.backend, "in the server" if model.holds_state else "in each request", model.missing or "yes"]
        for model in served
    ]
    print_table(console(), f"Models in {out}", ["model", "backend", "state", "written"], rows)


FORMATS: dict[str, Callable[[Path, Path, int | None, bool], None]] = {
    "leapp": write_leapp,
    "sherpa-onnx": write_sherpa,
    "triton": write_triton,
}
"""What writes each: the bundle's folder, what to write, most streams in one call, whether to print JSON."""

_WRITTEN = {"sherpa-onnx": "file"}


def write_format(target: str, bundle: Path, out: Path | None, max_batch: int | None, as_json: bool) -> None:
    """Write a bundle for a target of :data:`FORMATS`."""
    if out is None:
        raise click.UsageError(f"--target {target} needs --out: the {_WRITTEN.get(target, 'folder')} to write.")
    FORMATS[target](bundle, out, max_batch, as_json)
