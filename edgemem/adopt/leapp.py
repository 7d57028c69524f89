"""LEAPP's interchange format: a YAML file that names the states of an ONNX file, and their first values beside it.

``feedback_flow`` says which output is the new value of which input, ``pipeline.inputs`` and ``pipeline.outputs`` name
the data and the results. Tensors are called ``node/name``; a description of one node is one graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from edgemem.adopt.options import AdoptOptions
from edgemem.bundle import WEIGHTS, Bundle, GraphFile, package_versions
from edgemem.contract import Sizes, TensorSpec, initial_state
from edgemem.contract.axes import in_graph
from edgemem.errors import BundleError, EdgememError, ExportError, MissingDependencyError
from edgemem.extras import how_to_install
from edgemem.files import inside, read_file, replace_folder, sha256_file

_MOST_BYTES, _MOST_VALUES_BYTES = 16 << 20, 1 << 30
_VALUES = "initial_values.safetensors"
_SECTIONS = ("models", "pipeline", "system information")


def is_leapp(path: Path) -> bool:
    """Whether a file is a description in YAML, by its name."""
    return path.suffix in (".yaml", ".yml")


def read_leapp(path: Path, options: AdoptOptions) -> tuple[Path, AdoptOptions]:
    """The ONNX file of a description, and the options that the description adds; those of the user stay.

    Raises:
        ExportError: It is not a description of one ONNX graph, or the file was changed.
        MissingDependencyError: PyYAML is not installed.
    """
    yaml = _yaml()
    try:
        data = yaml.safe_load(read_file(path, _MOST_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ExportError(f"{path} cannot be read as YAML: {error}") from error
    try:
        node, file, pipeline = _one_node(path, data)
        feedback = (pipeline.get("feedback_flow") or {}).items()
        states = {_name(target): _name(source) for source, targets in feedback for target in targets}
        found = replace(
            options,
            inputs=options.inputs or tuple(pipeline["inputs"][node]),
            outputs=options.outputs or tuple(name for name in pipeline["outputs"][node] if name not in states.values()),
            states=options.states or states,
            initial={**_initial(path, pipeline.get("initial_values")), **options.initial},
            states_by=path.name,
        )
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ExportError(f"{path} is not a LEAPP description: {error!r}.") from error
    return file, found


def _one_node(path: Path, data: Any) -> tuple[str, Path, Mapping[str, Any]]:
    """The node's name, its file, and the pipeline.

    Raises:
        ExportError: There are several nodes, or the file is no ONNX file, missing or changed.
    """
    if not isinstance(data, dict) or any(section not in data for section in _SECTIONS):
        raise ExportError(f"{path} is not a LEAPP description: it has no {', '.join(_SECTIONS)}.")
    if len(data["models"]) != 1:
        raise ExportError(f"{path} describes {len(data['models'])} models; edgemem adopts one.")
    ((node, model),) = data["models"].items()
    parameters = model["parameters"]
    if parameters["backend"] != "onnx":
        kind = parameters["backend"]
        raise ExportError(f"{path}: {node} is stored as {kind}.", hint="Export it with the ONNX backend.")
    try:
        file = inside(path.parent, parameters["model_path"])
        if sha256_file(file) != parameters["sha256sum"]:
            raise ExportError(f"{file} was changed after {path.name} was written: its SHA-256 differs.")
    except (OSError, BundleError) as error:
        raise ExportError(f"{path}: {parameters['model_path']} cannot be read: {error}") from error
    return node, file, data["pipeline"]


def _initial(path: Path, name: str | None) -> dict[str, Any]:
    if not name:
        return {}
    try:
        values = safetensors.numpy.load(read_file(inside(path.parent, name), _MOST_VALUES_BYTES))
    except (OSError, BundleError, SafetensorError) as error:
        raise ExportError(f"{path}: {name} cannot be read: {error}") from error
    return {_name(key): value for key, value in values.items()}


def _name(reference: str) -> str:
    return reference.split("/", 1)[1]


def write_leapp(bundle: Bundle, out: Path) -> Path:
    """Write a bundle as a LEAPP description, an ONNX file and the states' first values.

    Args:
        bundle: The bundle; its graph takes one step, and every state is a whole input and output.
        out: Folder to write; it must be empty or not there.

    Returns:
        The description.

    Raises:
        EdgememError: The folder holds files, or the contract has what LEAPP does not: positions, rings, front ends.
        MissingDependencyError: PyYAML is not installed.
    """
    yaml, contract, graph = _yaml(), bundle.contract, bundle.graph_for(1)
    odd = [spec.name for spec in contract.data if spec.front_end]
    odd += [spec.name for spec in contract.output_specs if spec.back_end]
    odd += [state.name for state in contract if state.update != "replace" or state.growing_axis is not None]
    odd += ["position"] if contract.position == "input" else []
    if graph is None or odd:
        raise EdgememError(
            f"{bundle.path} cannot be a LEAPP description: {', '.join(odd) or 'no graph takes one step'}.",
            hint="LEAPP has no front ends, rings and positions: adopt the graph's own frames, or export with --sealed.",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EdgememError(f"{out} exists and is not empty, so it was not changed.", hint="Name another --out folder.")
    with replace_folder(out) as folder:
        bundle.copy_to(folder, {graph.file, WEIGHTS} & bundle.manifest.files.keys())
        values = {f"{out.name}/{s.input_name}": in_graph(initial_state(s, 1), s.batch_axis) for s in contract}
        safetensors.numpy.save_file(values, folder / _VALUES)
        described = _described(bundle, graph, out.name)
        (folder / f"{out.name}.yaml").write_text(yaml.safe_dump(described, sort_keys=False), encoding="utf-8")
    return out / f"{out.name}.yaml"


def _described(bundle: Bundle, graph: GraphFile, node: str) -> dict[str, Any]:
    """The description as plain values."""
    contract, content = bundle.contract, bundle.file(graph.file).read_bytes()

    def tensors(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
        return [{"name": spec.name, "shape": list(spec.shape(Sizes())), "dtype": spec.dtype} for spec in specs]

    model = {
        "inputs": tensors(contract.inputs(graph)),
        "outputs": tensors(contract.outputs(graph)),
        "parameters": {
            "model_path": graph.file,
            "md5sum": hashlib.md5(content, usedforsecurity=False).hexdigest(),
            "sha256sum": hashlib.sha256(content).hexdigest(),
            "backend": "onnx",
        },
    }
    pipeline = {
        "data_flow": {},
        "feedback_flow": {f"{node}/{s.output_name}": [f"{node}/{s.input_name}"] for s in contract},
        "inputs": {node: [spec.name for spec in (*contract.data, *contract.held)]},
        "outputs": {node: [spec.name for spec in contract.output_specs]},
        "initial_values": _VALUES,
    }
    return {"models": {node: model}, "pipeline": pipeline, "system information": package_versions("onnxruntime")}


def _yaml() -> Any:
    try:
        import yaml
    except ImportError as error:
        missing = "LEAPP descriptions are YAML, and PyYAML is not installed."
        raise MissingDependencyError(missing, hint=how_to_install("yaml")) from error
    return yaml
