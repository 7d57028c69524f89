"""Export: from a torch module to a verified bundle (needs torch, onnx and onnxscript)."""

from __future__ import annotations

from edgemem.export.discover import discover
from edgemem.export.exporter import export_bundle
from edgemem.export.load import load_source
from edgemem.export.options import ExportOptions
from edgemem.export.sources import Source, from_config, from_module
from edgemem.export.twins import growing_twin, source_of
from edgemem.export.upgrade import Upgrade, upgrade
from edgemem.export.verify.check import CheckReport, check

__all__ = [
    "CheckReport",
    "ExportOptions",
    "Source",
    "Upgrade",
    "check",
    "discover",
    "export_bundle",
    "from_config",
    "from_module",
    "growing_twin",
    "load_source",
    "source_of",
    "upgrade",
]
