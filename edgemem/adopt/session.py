"""Calling a graph as a hand-written loop does: numpy in, numpy out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from edgemem.errors import ExportError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.runtimes.ort.importing import import_onnxruntime

Array = NDArray[Any]
_STANDARD = ("", "ai.onnx")


class Calls(Protocol):
    """What computes outputs from inputs."""

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name."""


class Graph:
    """A graph in ONNX Runtime, on one thread, with nothing but what a user would write.

    Args:
        model: The model.
        where: What it is called in messages.
        folder: Where its external data lie.

    Raises:
        ExportError: ONNX Runtime cannot load it; custom operators are named.
    """

    def __init__(self, model: ir.Model, where: str, folder: Path) -> None:
        try:
            onnxruntime = import_onnxruntime()
        except ImportError as error:
            raise MissingDependencyError(
                f"onnxruntime cannot be imported: {error}", hint=how_to_install("onnxruntime")
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
        self._where = where
        try:
            content = ir.to_proto(model).SerializeToString()
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise _why_not(model, where, str(error)) from error
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name.

        Raises:
            ExportError: The graph does not compute with these inputs.
        """
        try:
            return dict(zip(self.outputs, self._session.run(None, dict(feeds)), strict=True))
        except Exception as error:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
            raise ExportError(f"{self._where} does not compute with {shapes}: {_first_line(str(error))}") from error


def _first_line(text: str) -> str:
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", text.strip().splitlines()[0] if text.strip() else text)


def _why_not(model: ir.Model, where: str, text: str) -> ExportError:
    custom = sorted(
        {
            f"{node.domain}:{node.op_type}"
            for graph in model.graphs()
            for node in graph
            if node.domain not in _STANDARD and node.op_identifier() not in model.functions
        }
    )
    if custom and re.search(r"not a registered|No Op registered|No opset import|domain", text):
        return ExportError(
            f"{where} uses operators that ONNX Runtime does not have: {', '.join(custom)}.",
            hint="Export the model with standard operators, or adopt a variant without that library's extensions.",
        )
    return ExportError(f"ONNX Runtime cannot load {where}: {_first_line(text)}")
