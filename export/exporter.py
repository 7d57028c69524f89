"""The export: source to bundle, verified before it takes its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from torch import nn

from edgemem.bundle import WEIGHTS, Bundle, GraphFile, Manifest, package_versions, write_bundle
from edgemem.contract import METADATA_KEY, Contract
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import ExportError
from edgemem.export.graph import export_graph
from edgemem.export.passes.half import halve_graphs
from edgemem.export.passes.quantize import quantize_graphs
from edgemem.export.passes.store_weights import store_weights
from edgemem.export.source import Source, from_config
from edgemem.export.stored import StoredWeights
from edgemem.export.text_files import TOKENIZER
from edgemem.export.verify.check import check
from edgemem.export.verify.parity import Progress
from edgemem.manifest import SourceInfo
from edgemem.memories.kinds.full import FullCache
from edgemem.models.checkpoint import load_weights
from edgemem.models.decoder import Decoder
from edgemem.precision import DEFAULT_BLOCK_SIZE, Precision
from edgemem.streaming.sealed import Sealed

MODEL = "model.onnx"

Announce = Callable[[str], None]


def export_bundle(
    source: Source,
    out: str | Path,
    *,
    sealed: bool = False,
    max_chunk: int | None = None,
    dtype: str | None = None,
    weights: str | None = None,
    block_size: int = DEFAULT_BLOCK_SIZE,
    verify: bool = True,
    steps: int | None = None,
    announce: Announce = lambda message: None,
    progress: Progress | None = None,
) -> Bundle:
    """Export a model to a bundle; what was at ``out`` is replaced only when the new bundle has passed its check.

    Args:
        source: The model.
        out: Folder of the bundle.
        sealed: Write the rings inside the graph, so that every state goes whole in and whole out.
        max_chunk: Most time steps of one call; at most what the model allows.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"``: of weights and matrix products; ``None``: what the decoder's
            configuration says, else ``"fp32"``.
        weights: ``"int8"`` or ``"int4"`` stores the large matrices as whole numbers, with a scale for each block.
        block_size: Rows of a matrix that share a scale: 16, 32, 64 or 128.
        verify: Hold the bundle to the model (see :mod:`edgemem.export.verify.check`).
        steps: Steps of that check.
        announce: Called with a line for each stage.
        progress: Called as the check goes.

    Raises:
        ExportError: The module cannot be exported, or the bundle does not compute what it computes.
        EdgememError: The bundle cannot be written.
    """
    precision = Precision.of(dtype, weights, block_size, default=source.config.dtype if source.config else "float32")
    with write_bundle(out) as writer:
        manifest = _write(source, writer.folder, precision, sealed, max_chunk, announce)
        bundle = writer.finish(manifest)
        if verify:
            announce("checking the bundle against the model")
            report = check(writer.folder, source, steps=steps, progress=progress)
            bundle = writer.finish(replace(manifest, verification=report.to_json()))
    return replace(bundle, path=Path(out))


def _write(
    source: Source, folder: Path, precision: Precision, sealed: bool, max_chunk: int | None, announce: Announce
) -> Manifest:
    """Trace the source and write all files but the manifest, which is returned; nothing else of it stays in memory."""
    exported = in_precision(source, precision)
    module: nn.Module = Sealed(exported.module) if sealed else exported.module
    contract: Contract = module.contract()  # type: ignore[operator]
    if max_chunk is not None:
        if not 1 <= max_chunk <= contract.max_chunk:
            raise ExportError(f"max_chunk must be from 1 to {contract.max_chunk} for this model, got {max_chunk}.")
        contract = replace(contract, max_chunk=max_chunk)
    announce("tracing the model")
    graphs = (source.trace or _one_graph)(module, contract)
    models = [model for _, model in graphs]
    if precision.weights is not None:
        announce(f"quantising the weights to {precision.weights}")
    stored = store_in_precision(models, exported, precision)
    announce("writing weights and graph")
    whole = exported.config is not None
    store_weights(models, exported.module, folder, whole=whole, instead=stored.files())
    for graph, model in graphs:
        model.metadata_props[METADATA_KEY] = json.dumps(contract.to_json(), separators=(",", ":"))
        ir.save(model, folder / graph.file)
    source.text.write(folder)
    if ignored := source.text.generation.ignored:
        announce(f"settings of generation_config.json that edgemem does not have: {', '.join(ignored)}")
    tokenizer = source.config.tokenizer if source.config else None
    return Manifest(
        contract=contract,
        graphs=tuple(graph for graph, _ in graphs),
        source=SourceInfo(source.kind, source.name, source.has_random_weights, source.options),
        model=exported.config,
        precision=stored.described(precision),
        tokenizer=tokenizer if source.text.tokenizer is None else TOKENIZER,
        special_tokens=source.text.special_tokens,
        generation=source.text.generation,
        input_meaning=source.config.input_meaning if source.config else "",
        versions=package_versions("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
    )


def in_precision(source: Source, precision: Precision) -> Source:
    """What is traced: a decoder computes in the precision's dtype itself; the graphs of others are changed later."""
    if not isinstance(source.module, Decoder):
        return source
    # A head of whole numbers is no table to look tokens up in.
    module = source.module.converted(precision.dtype, untie=precision.weights is not None)
    return replace(source, module=module, config=module.config)


def store_in_precision(models: list[ir.Model], source: Source, precision: Precision) -> StoredWeights:
    """Change the graphs' weights, in place, to what a precision asks for; what became of them."""
    stored = StoredWeights()
    if precision.weights is not None:
        stored = quantize_graphs(models, source.module, precision)
    by_itself = isinstance(source.module, Decoder)
    if precision.dtype != "float32" and not by_itself:
        halve_graphs(models, source.module, precision, stored, only_tables=False)
    elif precision.weights is not None and precision.dtype == "float32":
        halve_graphs(models, source.module, precision, stored, only_tables=True)
    return stored


def _one_graph(module: nn.Module, contract: Contract) -> list[tuple[GraphFile, ir.Model]]:
    return [(GraphFile(MODEL, 1, contract.max_chunk), export_graph(module, contract))]


def sealed_twin(bundle: Bundle, out: str | Path) -> Path:
    """The same decoder with its rings written inside the graph: what hosts without ring writes run.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    options = bundle.manifest.precision.options
    export_bundle(source_of(bundle), out, sealed=True, max_chunk=bundle.contract.max_chunk, verify=False, **options)
    return Path(out)


def growing_twin(bundle: Bundle, out: str | Path) -> Path:
    """A decoder of the same shape with a growing KV cache in place of its memories, and random weights: the baseline.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    config = replace(_config(bundle), memory=[{"type": FullCache.type_name}])
    options = bundle.manifest.precision.options
    export_bundle(from_config(config, f"growing twin of {bundle.path}"), out, verify=False, **options)
    return Path(out)


def source_of(bundle: Bundle) -> Source:
    """The decoder that a bundle was exported from, rebuilt from its own configuration and weights.

    It computes in float32, whatever the bundle's precision, with the weights as the bundle holds them.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    module = load_weights(Decoder(replace(_config(bundle), dtype="float32")), bundle.file(WEIGHTS))
    return Source(module, bundle.manifest.source.kind, str(bundle.path), module.config)


def _config(bundle: Bundle) -> DecoderConfig:
    if bundle.manifest.model is None:
        raise ExportError(f"{bundle.path} was made from a user's own module: it has no decoder configuration.")
    return bundle.manifest.model
