"""Whether an ONNX file, as ONNX Runtime sees it, keeps the contract of its bundle."""

from __future__ import annotations

from typing import Any

from edgemem.bundle import GraphFile
from edgemem.contract import METADATA_KEY, Contract, FoundTensor, difference
from edgemem.dtypes import dtype_of_ort
from edgemem.errors import ContractError
from edgemem.reading import parse_json

_HINT = "The graph and the manifest do not belong together: export the bundle again."


def check_graph(session: Any, contract: Contract, graph: GraphFile) -> None:
    """Compare a loaded graph's metadata, inputs and outputs with the contract.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        contract: The bundle's contract.
        graph: The graph's entry in the manifest.

    Raises:
        ContractError: They differ; the message names the first tensor that does.
    """
    try:
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ContractError(f"{graph.file} has no {METADATA_KEY} in its metadata.", hint=_HINT)
        found = Contract.from_json(parse_json(text), f"{graph.file}: {METADATA_KEY}")
    except ValueError as error:
        raise ContractError(f"{graph.file}: {METADATA_KEY} in its metadata is not JSON: {error}", hint=_HINT) from error
    if found != contract:
        raise ContractError(f"{graph.file} has another contract than the manifest.", hint=_HINT)
    try:
        inputs, outputs = (list(map(_found, found)) for found in (session.get_inputs(), session.get_outputs()))
    except UnicodeDecodeError as error:
        raise ContractError(f"{graph.file}: the name of an input or output is not text: {error}", hint=_HINT) from error
    differs = difference("input", inputs, contract.inputs(graph)) or difference(
        "output", outputs, contract.outputs(graph)
    )
    if differs:
        raise ContractError(f"{graph.file}: {differs}.", hint=_HINT)


def _found(arg: Any) -> FoundTensor:
    shape = tuple(size if isinstance(size, int) else None for size in arg.shape)
    return FoundTensor(arg.name, dtype_of_ort(arg.type), shape)
