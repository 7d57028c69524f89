"""Export: from a torch module to a verified bundle (needs torch, onnx and onnxscript)."""

from __future__ import annotations

from edgemem.export.discover import discover
from edgemem.export.exporter import export_bundle, growing_twin, sealed_twin, source_of
from edgemem.export.source import Source, from_module, load_source
from edgemem.export.verify.check import CheckReport, check

__all__ = [
    "CheckReport",
    "Source",
    "check",
    "discover",
    "export_bundle",
    "from_module",
    "growing_twin",
    "load_source",
    "sealed_twin",
    "source_of",
]
