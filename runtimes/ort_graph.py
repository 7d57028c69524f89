"""Whether an ONNX file, as ONNX Runtime sees it, keeps the contract of its bundle."""

from __future__ import annotations

import json
from typing import Any

from edgemem.bundle import GraphFile
from edgemem.contract import METADATA_KEY, OUTPUT_INDICES, POSITION, Contract
from edgemem.errors import ContractError

ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}
_HINT = "The graph and the manifest do not belong together: export the bundle again."

Shape = tuple["int | None", ...]  # None: an axis that the caller sizes


def check_graph(session: Any, contract: Contract, graph: GraphFile) -> None:
    """Compare a loaded graph's metadata, inputs and outputs with the contract.

    Args:
        session: An ``onnxruntime.InferenceSession``.
        contract: The bundle's contract.
        graph: The graph's entry in the manifest.

    Raises:
        ContractError: They differ; the message names the first tensor that does.
    """
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ContractError(f"{graph.file} carries no {METADATA_KEY} in its metadata.", hint=_HINT)
    try:
        carried = Contract.from_json(json.loads(text))
    except ValueError as error:
        raise ContractError(f"{graph.file}: {METADATA_KEY} in its metadata is not JSON: {error}", hint=_HINT) from error
    if carried != contract:
        raise ContractError(f"{graph.file} carries another contract than the manifest.", hint=_HINT)

    inputs: dict[str, tuple[str, Shape]] = {
        contract.input.name: (contract.input.dtype, (None, None, *contract.input.shape))
    }
    if contract.position == "input":
        inputs[POSITION] = ("int64", (None,))
    if contract.output_indices:
        inputs[OUTPUT_INDICES] = ("int64", (None,))
    outputs: dict[str, tuple[str, Shape]] = {
        contract.output.name: (contract.output.dtype, (None, None, *contract.output.shape))
    }
    for state in contract:
        inputs[state.input_name] = (state.dtype, (None, *state.shape))
        entries: Shape = (
            (None, state.shape[0], None, state.shape[2]) if state.update == "append" else (None, *state.shape)
        )
        outputs[state.output_name] = (state.dtype, entries)
    _compare(graph, "input", session.get_inputs(), inputs, one_step=graph.max_time == 1)
    _compare(graph, "output", session.get_outputs(), outputs, one_step=graph.max_time == 1)


def _compare(
    graph: GraphFile, kind: str, found: list[Any], wanted: dict[str, tuple[str, Shape]], *, one_step: bool
) -> None:
    names = {arg.name for arg in found}
    if names != set(wanted):
        missing, extra = sorted(set(wanted) - names), sorted(names - set(wanted))
        raise ContractError(
            f"{graph.file}: {kind}s of the graph lack {missing or 'nothing'} and add {extra or 'nothing'} "
            "to what the contract says.",
            hint=_HINT,
        )
    for arg in found:
        dtype, shape = wanted[arg.name]
        if arg.type != ORT_TYPES[dtype]:
            raise ContractError(
                f"{graph.file}: {kind} {arg.name!r} is {arg.type}, the contract says {dtype}.", hint=_HINT
            )
        if len(arg.shape) != len(shape) or not all(
            _fits(have, want, kind, one_step and axis > 0)
            for axis, (have, want) in enumerate(zip(arg.shape, shape, strict=True))
        ):
            raise ContractError(
                f"{graph.file}: {kind} {arg.name!r} has shape {arg.shape}, the contract says "
                f"{['any' if size is None else size for size in shape]}.",
                hint=_HINT,
            )


def _fits(have: int | str | None, want: int | None, kind: str, may_be_one: bool) -> bool:
    """Whether an axis of the graph is what the contract says; shapes of outputs need not have been inferred."""
    if want is None:
        return not isinstance(have, int) or (may_be_one and have == 1)
    return have == want or (kind == "output" and not isinstance(have, int))
