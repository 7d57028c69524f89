"""The ONNX opset of a graph, converted by onnx's own converter."""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter

from edgemem.errors import ExportError


def opset_of(model: ir.Model) -> int:
    """The opset of a model's standard operators."""
    return max(model.opset_imports.get(domain, 0) for domain in ("", "ai.onnx"))


def at_opset(model: ir.Model, opset: int) -> ir.Model:
    """The same model in another opset.

    Args:
        model: The model; not changed.
        opset: The opset wanted.

    Raises:
        ExportError: onnx's converter cannot convert one of its operators.
    """
    if opset == opset_of(model):
        return model
    try:
        return ir.from_proto(version_converter.convert_version(ir.to_proto(model), opset))
    except Exception as error:  # the converter is C++ and raises many kinds of errors
        raise ExportError(
            f"onnx does not convert the graph from opset {opset_of(model)} to {opset}: {_first_line(str(error))}.",
            hint="Export the model with that opset, or leave out --opset and --weights.",
        ) from error


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].rpartition("failed: ")[2].rstrip(".") or "it gives no reason"
