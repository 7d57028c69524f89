"""The export: source to bundle, verified before it takes its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
from torch import nn

from edgemem.bundle import WEIGHTS, Bundle, GraphFile, Manifest, package_versions, write_bundle
from edgemem.contract import METADATA_KEY, Contract
from edgemem.errors import ExportError
from edgemem.export.check import Progress, check
from edgemem.export.graph import Sealed, export_graph
from edgemem.export.source import Source, from_config
from edgemem.export.weights import store_weights
from edgemem.memories import FullCache
from edgemem.models.checkpoint import load_weights
from edgemem.models.config import DecoderConfig
from edgemem.models.decoder import Decoder

MODEL = "model.onnx"

Announce = Callable[[str], None]


def export_bundle(
    source: Source,
    out: str | Path,
    *,
    sealed: bool = False,
    max_chunk: int | None = None,
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
        verify: Hold the bundle to the model (see :mod:`edgemem.export.check`).
        steps: Steps of that check.
        announce: Called with a line for each stage.
        progress: Called as the check goes.

    Raises:
        ExportError: The module cannot be exported, or the bundle does not compute what it computes.
        EdgememError: The bundle cannot be written.
    """
    module: nn.Module = Sealed(source.module) if sealed else source.module
    contract: Contract = module.contract()  # type: ignore[operator]
    if max_chunk is not None:
        if not 1 <= max_chunk <= contract.max_chunk:
            raise ExportError(f"max_chunk must be from 1 to {contract.max_chunk} for this model, got {max_chunk}.")
        contract = replace(contract, max_chunk=max_chunk)
    with write_bundle(out) as writer:
        announce("tracing the model")
        graphs = (source.trace or _one_graph)(module, contract)
        announce("writing weights and graph")
        store_weights([model for _, model in graphs], source.module, writer.folder, whole=source.config is not None)
        for graph, model in graphs:
            model.metadata_props[METADATA_KEY] = json.dumps(contract.to_json(), separators=(",", ":"))
            ir.save(model, writer.folder / graph.file)
        tokenizer = source.config.tokenizer if source.config else None
        if source.tokenizer_file is not None:
            tokenizer = "tokenizer.json"
            shutil.copyfile(source.tokenizer_file, writer.folder / tokenizer)
        manifest = Manifest(
            contract=contract,
            graphs=tuple(graph for graph, _ in graphs),
            source={"kind": source.kind, "name": source.name, "random_weights": source.has_random_weights},
            model=source.config.to_json() if source.config else None,
            tokenizer=tokenizer,
            input_meaning=source.config.input_meaning if source.config else "",
            versions=package_versions("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime"),
        )
        bundle = writer.finish(manifest)
        if verify:
            announce("checking the bundle against the model")
            report = check(writer.folder, source, steps=steps, progress=progress)
            bundle = writer.finish(replace(manifest, verification=report.to_json()))
    return replace(bundle, path=Path(out))


def _one_graph(module: nn.Module, contract: Contract) -> list[tuple[GraphFile, ir.Model]]:
    return [(GraphFile(MODEL, 1, contract.max_chunk), export_graph(module, contract))]


def sealed_twin(bundle: Bundle, out: str | Path) -> Path:
    """The same decoder with its rings written inside the graph: what hosts without ring writes run.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    export_bundle(source_of(bundle), out, sealed=True, max_chunk=bundle.contract.max_chunk, verify=False)
    return Path(out)


def growing_twin(bundle: Bundle, out: str | Path) -> Path:
    """A decoder of the same shape with a growing KV cache in place of its memories, and random weights: the baseline.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    config = replace(_config(bundle), memory=[{"type": FullCache.type_name}])
    export_bundle(from_config(config, f"growing twin of {bundle.path}"), out, verify=False)
    return Path(out)


def source_of(bundle: Bundle) -> Source:
    """The decoder that a bundle was exported from, rebuilt from its own configuration and weights.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    module = load_weights(Decoder(_config(bundle)), bundle.file(WEIGHTS))
    return Source(module, str(bundle.manifest.source.get("kind", "checkpoint")), str(bundle.path), module.config)


def _config(bundle: Bundle) -> DecoderConfig:
    if bundle.manifest.model is None:
        raise ExportError(f"{bundle.path} was made from a user's own module: it has no decoder configuration.")
    return DecoderConfig.from_json(bundle.manifest.model, f"{bundle.path}: model")
