"""The folder that a Triton server reads: one model for each way to serve a bundle.

::

    repository/
      NAME/                       Python backend; the server holds each sequence in edgemem's pool
      NAME_with_state/            Python backend; the state travels as one snapshot
      NAME_onnx/                  onnxruntime backend; the server holds the states of each sequence
      NAME_onnx_with_state/       onnxruntime backend; the states travel with every request
      NAME_tensorrt…/             the same two for the tensorrt backend
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgemem.bundle import MANIFEST, Bundle
from edgemem.errors import ExportError
from edgemem.files import replace_folder
from edgemem.triton import config
from edgemem.triton.config import BUNDLE, INITIAL_STATE, Limits
from edgemem.triton.ports import Ports
from edgemem.triton.proof import compare, compare_ports
from edgemem.triton.whole_graph import MODEL, whole_graph, write_whole_graph

FLAVOURS = ("python", "onnxruntime", "tensorrt")
_CONFIG, _VERSION = "config.pbtxt", "1"
_FIRST_LINE = "# Written by edgemem.\n"
_BACKENDS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"backend": "onnxruntime", "default_model_filename": MODEL},
    "tensorrt": {"backend": "tensorrt", "default_model_filename": "model.plan"},
}
_SHORT = {"onnxruntime": "onnx", "tensorrt": "tensorrt"}


@dataclass(frozen=True)
class Served:
    """One model of the repository.

    Attributes:
        name: Its name, which requests give.
        backend: The backend that runs it.
        holds_state: Whether the server holds the state; otherwise it travels with every request.
        missing: Why it was not written; ``""``: it was.
    """

    name: str
    backend: str
    holds_state: bool
    missing: str = ""


def write_repository(
    bundle: Bundle,
    out: Path,
    *,
    name: str = "",
    flavours: tuple[str, ...] = ("python", "onnxruntime"),
    limits: Limits = Limits(),  # noqa: B008 (immutable)
    announce: Callable[[str], None] = lambda stage: None,
) -> list[Served]:
    """Write the models of a bundle to a repository; other models there stay.

    Args:
        bundle: The bundle.
        out: The repository.
        name: First part of the models' names; ``""``: that of the bundle's folder.
        flavours: Some of :data:`FLAVOURS`.
        limits: How much one model holds.
        announce: Called with a line at each stage.

    Returns:
        Every model of those flavours, and why it was not written where it cannot be.

    Raises:
        ExportError: A model of that name was not written by edgemem.
        VerificationError: The whole graph computes something else than the bundle.
        EdgememError: The folder cannot be written.
    """
    name = name or re.sub(r"[^A-Za-z0-9_.-]+", "_", bundle.path.resolve().name)
    served: list[Served] = []
    if "python" in flavours:
        announce("writing the models for the Python backend")
        served += _python_models(bundle, out, name, limits)
    backends = [flavour for flavour in flavours if flavour != "python"]
    if not backends:
        return served
    try:
        model, ports = whole_graph(bundle, limits.batch)
    except ExportError as error:
        return served + [made for backend in backends for made in _graph_names(name, backend, error.message)]
    announce("comparing the whole graph with the bundle")
    compare(bundle, model, ports)
    for backend in backends:
        announce(f"writing the models for {backend}")
        for made in _graph_names(name, backend):
            _write_graph_model(bundle, out, made, model, ports, limits)
            served.append(made)
    return served


def _graph_names(name: str, backend: str, missing: str = "") -> Iterator[Served]:
    yield Served(f"{name}_{_SHORT[backend]}", backend, True, missing)
    yield Served(f"{name}_{_SHORT[backend]}_with_state", backend, False, missing)


def _python_models(bundle: Bundle, out: Path, name: str, limits: Limits) -> Iterator[Served]:
    contract = bundle.contract
    both = Served(name, "python", True), Served(f"{name}_with_state", "python", False)
    for made, kind in zip(both, ("WithSequences", "WithState"), strict=True):
        if made.holds_state and not (contract.has_batches and contract.has_fixed_size):
            why = "the graph computes one stream" if contract.has_fixed_size else "the state grows with the position"
            yield Served(made.name, made.backend, made.holds_state, f"{why}, so no pool can hold it.")
            continue
        with _model_folder(out / made.name) as (folder, version):
            (version / BUNDLE).mkdir()
            bundle.copy_to(version / BUNDLE, (MANIFEST, *bundle.manifest.files))
            code = f"from edgemem.triton.served import {kind} as TritonPythonModel  # noqa: F401\n"
            (version / "model.py").write_text(code)
            written = config.of_python(made.name, contract, limits if made.holds_state else None)
            (folder / _CONFIG).write_text(_FIRST_LINE + written)
        yield made


def _write_graph_model(bundle: Bundle, out: Path, made: Served, model: ir.Model, ports: Ports, limits: Limits) -> None:
    backend: Mapping[str, Any] = _BACKENDS[made.backend]
    with _model_folder(out / made.name) as (folder, version):
        write_whole_graph(model, bundle, version)
        if made.holds_state:
            written = config.with_sequences(made.name, backend, ports, limits)
            _write_first_values(folder / INITIAL_STATE, ports)
        else:
            written = config.with_state(made.name, backend, ports)
        (folder / _CONFIG).write_text(_FIRST_LINE + written)
        compare_ports(version / MODEL, ports)


def _write_first_values(folder: Path, ports: Ports) -> None:
    for state in ports.states:
        if not state.starts_at_zero:
            folder.mkdir(exist_ok=True)
            (folder / state.past.name).write_bytes(state.initial.tobytes())


@contextlib.contextmanager
def _model_folder(path: Path) -> Iterator[tuple[Path, Path]]:
    """The folder of a model, and that of its version, to fill; they replace what edgemem wrote there before.

    Raises:
        ExportError: There is something else.
    """
    is_ours = (path / _CONFIG).is_file() and (path / _CONFIG).read_bytes().startswith(_FIRST_LINE.encode())
    if path.exists() and not is_ours:
        raise ExportError(
            f"{path} exists and edgemem did not write it, so it was not changed.", hint="Name another --out."
        )
    with replace_folder(path) as folder:
        version = folder / _VERSION
        version.mkdir()
        yield folder, version
