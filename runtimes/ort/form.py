"""Which form of a bundle's graphs ONNX Runtime computes: with edgemem's own operators, or with ONNX's only."""

from __future__ import annotations

from pathlib import Path

from edgemem.bundle import Bundle
from edgemem.runtimes import native
from edgemem.runtimes.ort.load import LoadOptions

NATIVE, STANDARD = "native operators", "standard operators"


def native_operators(bundle: Bundle, options: LoadOptions) -> tuple[Path | None, str]:
    """The library of operators for a bundle on the CPU, or ``None``; and in words which form runs, and why.

    Args:
        bundle: The bundle.
        options: How its graphs are loaded.
    """
    if all(graph.native is None for graph in bundle.manifest.graphs):
        return None, f"{STANDARD}: the bundle has no native form"
    if not options.native:
        return None, f"{STANDARD}: the native form was not asked for"
    found = native.find()
    return found.path, f"{NATIVE} ({found.level})" if found.path is not None else f"{STANDARD}: {found.reason}"
