"""The export: from a source to a bundle, which is written only if its check passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import nn

from edgemem.bundle import Bundle, Manifest, package_versions, write_bundle
from edgemem.contract import Contract
from edgemem.errors import ExportError
from edgemem.export.options import ExportOptions
from edgemem.export.pipeline import Job, run_passes
from edgemem.export.sources import Source
from edgemem.export.text_files import TOKENIZER
from edgemem.export.verify.check import check
from edgemem.export.verify.parity import Progress
from edgemem.manifest import SourceInfo
from edgemem.streaming.sealed import Sealed

Announce = Callable[[str], None]


def export_bundle(
    source: Source,
    out: str | Path,
    options: ExportOptions = ExportOptions(),  # noqa: B008 (immutable)
    *,
    announce: Announce = lambda message: None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a model to a bundle. What was at ``out`` is replaced only if the check of the new bundle passes.

    Args:
        source: The model.
        out: Folder of the bundle.
        options: How it is exported.
        announce: Called with a line at each stage.
        progress: Called as the check advances.

    Raises:
        ExportError: The module cannot be exported, or the bundle computes something else than the module.
        EdgememError: The bundle cannot be written.
    """
    with write_bundle(out) as writer:
        manifest = _write(source, writer.folder, options, announce)
        bundle = writer.finish(manifest)
        if options.verify:
            announce("checking the bundle against the model")
            report = check(
                writer.folder, source, steps=options.steps, allow_change=options.allow_change, progress=progress
            )
            bundle = writer.finish(replace(manifest, verification=report.to_json()))
    return replace(bundle, path=Path(out))


def _write(source: Source, folder: Path, options: ExportOptions, announce: Announce) -> Manifest:
    """Trace the source and write every file except the manifest, which is returned. Frees all other memory."""
    precision = options.precision(source.default_dtype)
    traced = source.in_precision(precision)
    module: nn.Module = Sealed(traced.module) if options.sealed else traced.module
    contract = _contract(module, options.max_chunk)
    announce("tracing the model")
    job = Job(
        traced.trace(module, contract),
        contract,
        traced.module,
        precision,
        folder,
        traced_in_dtype=traced.traced_in_dtype,
        store_whole=traced.config is not None,
    )
    run_passes(job, announce)
    text = source.text
    text.write(folder)
    if ignored := text.generation.ignored:
        announce(f"edgemem does not have these settings of generation_config.json: {', '.join(ignored)}")
    config = source.config
    return Manifest(
        contract=job.contract,
        graphs=tuple(graph for graph, _ in job.graphs),
        source=SourceInfo(
            source.kind, source.name, source.has_random_weights, source.options, stored_dtype=source.stored_dtype
        ),
        model=traced.config,
        precision=job.stored.described(precision),
        tokenizer=TOKENIZER if text.tokenizer is not None else config.tokenizer if config else None,
        special_tokens=text.special_tokens,
        generation=text.generation,
        input_meaning=config.input_meaning if config else "",
        versions=package_versions("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
    )


def _contract(module: nn.Module, max_chunk: int | None) -> Contract:
    """The module's contract, for calls of at most so many time steps."""
    contract: Contract = module.contract()  # type: ignore[operator]
    if max_chunk is None:
        return contract
    if not 1 <= max_chunk <= contract.max_chunk:
        raise ExportError(f"max_chunk must be from 1 to {contract.max_chunk} for this model, got {max_chunk}.")
    return replace(contract, max_chunk=max_chunk)
