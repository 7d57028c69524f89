"""Bundles made from another bundle's decoder: what its speed and memory are compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgemem.bundle import Bundle
from edgemem.decoder_config import DecoderConfig
from edgemem.errors import ExportError
from edgemem.export.exporter import export_bundle
from edgemem.export.options import ExportOptions
from edgemem.export.sources import DecoderSource, from_config, rebuilt
from edgemem.memories.kinds.full import FullCache


def growing_twin(bundle: Bundle, out: str | Path) -> Path:
    """The baseline: a decoder of the same shape with a growing KV cache instead of its memories, and random weights.

    Returns:
        The new bundle's folder.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    config = replace(_config(bundle), memory=[{"type": FullCache.type_name}])
    options = ExportOptions(verify=False, **bundle.manifest.precision.options)
    return export_bundle(from_config(config, f"growing twin of {bundle.path}"), out, options).path


def source_of(bundle: Bundle) -> DecoderSource:
    """The decoder that a bundle was exported from, rebuilt from its own configuration and weights.

    It computes in float32 with the weights that the bundle stores, whatever the bundle's precision.

    Raises:
        ExportError: The bundle was not made from a decoder's configuration.
    """
    return DecoderSource(rebuilt(bundle, _config(bundle)), str(bundle.path), bundle.manifest.source.kind)


def _config(bundle: Bundle) -> DecoderConfig:
    if bundle.manifest.model is None:
        raise ExportError(f"{bundle.path} was made from a user's own module: it has no decoder configuration.")
    return bundle.manifest.model
