"""Other forms of a bundle, made of its own graph without torch: rings written inside, or windows opened to the past."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.bundle import Bundle, GraphFile, open_bundle, write_bundle
from edgemem.contract import METADATA_KEY, POSITION, Contract
from edgemem.errors import EdgememError, MissingDependencyError
from edgemem.extras import how_to_install

if TYPE_CHECKING:
    import onnx_ir as ir

_FILE = "model.onnx"


def sealed(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle with its rings written inside the graph, by ONNX operators: every state is a whole input and output.

    Args:
        bundle: A bundle; one without rings is returned as it is.
        folder: Where the other is written.

    Raises:
        MissingDependencyError: onnx_ir is not installed.
    """
    contract, graph = bundle.contract, bundle.graph_for(1)
    rings = {state.output_name: replace(state, update="replace") for state in contract if state.update == "append"}
    if not rings or graph is None:
        return bundle

    def write_rings(model: ir.Model) -> None:
        inputs = {value.name: value for value in model.graph.inputs}
        for at, entries in enumerate(model.graph.outputs):
            if (state := rings.get(str(entries.name))) is None:
                continue
            ring = inputs[state.input_name]
            place = _node(model, "Mod", inputs[POSITION], _ints(model, state.shape[1]))
            place = _node(model, "Reshape", place, _ints(model, [-1, 1, 1, 1]))
            place = _node(model, "Expand", place, _node(model, "Shape", entries))
            whole = _node(model, "ScatterElements", ring, place, entries, axis=2)
            whole.type, whole.shape, whole.name = ring.type, ring.shape, state.output_name
            model.graph.outputs[at] = whole

    states = tuple(rings.get(state.output_name, state) for state in contract)
    return _changed(bundle, graph.file, replace(contract, states=states, max_chunk=1), folder, write_rings)


def with_whole_past(bundle: Bundle, positions: int, folder: Path) -> Bundle:
    """A Hugging Face model whose attention keeps the whole past, up to so many positions, exactly.

    Args:
        bundle: A bundle of transformers whose cache was bounded when it was exported.
        positions: Slots of each ring.
        folder: Where the other is written.

    Raises:
        EdgememError: The bundle has no graph with native operators.
        MissingDependencyError: onnx_ir is not installed.
    """
    graph, rings = bundle.graph_for(1), bounded_rings(bundle)
    if graph is None or graph.native is None:
        raise EdgememError("only native operators attend to a ring of another length, and the bundle has none")

    def open_windows(model: ir.Model) -> None:
        names = {f"past.{name}" for name in rings}
        for node in model.graph:
            if node.op_type == "MemoryAttention" and any(
                value is not None and value.name in names for value in node.inputs
            ):
                node.attributes.add(_ir().AttrInt64("window", positions))
        for value in model.graph.inputs:
            if value.name in names and value.shape is not None:
                sizes = list(value.shape)
                value.shape = _ir().Shape([*sizes[:2], positions, *sizes[3:]])

    states = tuple(
        replace(state, shape=(state.shape[0], positions, *state.shape[2:])) if state.name in rings else state
        for state in bundle.contract
    )
    contract = replace(bundle.contract, states=states, max_chunk=graph.max_time, max_position=None)
    return _changed(bundle, graph.native, contract, folder, open_windows, native=True)


def bounded_rings(bundle: Bundle) -> set[str]:
    """The states of a Hugging Face model that hold keys and values which its export bounded."""
    options = bundle.manifest.source.options
    limits = dict(part.split("=") for part in (options.memory or "").split(",") if part)
    window = options.max_length or int(limits.get("window", 0))
    return {state.name for state in bundle.contract if state.update == "append" and state.window == window}


def growing_contract(bundle: Bundle, rings: set[str]) -> Contract:
    """The contract with those rings as states that grow: for the bytes at a position."""
    states = tuple(
        replace(state, shape=(state.shape[0], None, *state.shape[2:]), update="replace")
        if state.name in rings else state
        for state in bundle.contract
    )  # fmt: skip
    return replace(bundle.contract, states=states)


def _changed(
    bundle: Bundle,
    file: str,
    contract: Contract,
    folder: Path,
    change: Callable[[ir.Model], None],
    *,
    native: bool = False,
) -> Bundle:
    """A bundle of one graph, changed in place, with the weights of another."""
    model = _ir().load(bundle.file(file))
    change(model)
    model.graph.sort()
    model.metadata_props[METADATA_KEY] = json.dumps(contract.to_json())
    graphs = {name for graph in bundle.manifest.graphs for name in (graph.file, graph.native)}
    with write_bundle(folder) as writer:
        bundle.copy_to(writer.folder, bundle.manifest.files.keys() - graphs)
        _ir().save(model, writer.folder / _FILE)
        entry = GraphFile(_FILE, 1, contract.max_chunk, _FILE if native else None)
        writer.finish(replace(bundle.manifest, contract=contract, graphs=(entry,)))
    return open_bundle(folder, verify=False)


def _ir() -> Any:
    try:
        import onnx_ir
    except ImportError as error:
        raise MissingDependencyError("onnx_ir is not installed.", hint=how_to_install("onnx_ir")) from error
    return onnx_ir


def _node(model: ir.Model, kind: str, *inputs: Any, **attributes: Any) -> Any:
    node = _ir().node(kind, list(inputs), attributes)
    model.graph.append(node)
    return node.outputs[0]


def _ints(model: ir.Model, value: Any) -> Any:
    import numpy as np

    return _node(model, "Constant", value=_ir().tensor(np.asarray(value, np.int64)))
