"""Triton's ``config.pbtxt`` for each way to serve a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgemem.contract import Contract
from edgemem.triton.ports import Port, Ports, StatePort

SNAPSHOT = "snapshot"
"""Tensor of the Python models: a stream's state and position as bytes, uint8 ``[n]``."""
BUNDLE = "bundle"
"""Folder of a Python model's version that holds the bundle."""
INITIAL_STATE = "initial_state"
"""Folder of a model for first values of states that are not 0; Triton prescribes the name."""
_MICROSECONDS = 1_000_000


class Word(str):
    """A name that is written without quotes."""


@dataclass(frozen=True)
class Limits:
    """How much one model holds.

    Attributes:
        streams: Most streams at once.
        batch: Most streams in one call.
        idle_s: After so many seconds without a request, a stream is dropped.
    """

    streams: int = 64
    batch: int = 64
    idle_s: int = 600


def with_state(name: str, backend: Mapping[str, Any], ports: Ports) -> str:
    """The state travels with every request: any replica can answer it."""
    return text(
        {
            "name": name,
            **backend,
            "max_batch_size": ports.max_batch,
            "input": _tensors([*ports.inputs, *(state.past for state in ports.states)]),
            "output": _tensors([*ports.outputs, *(state.present for state in ports.states)]),
            "dynamic_batching": {},
        }
    )


def with_sequences(name: str, backend: Mapping[str, Any], ports: Ports, limits: Limits) -> str:
    """The server holds the state of each sequence, and batches steps of several."""
    return text(
        {
            "name": name,
            **backend,
            "max_batch_size": ports.max_batch,
            "input": _tensors(ports.inputs),
            "output": _tensors(ports.outputs),
            "sequence_batching": {**_sequences(limits), "state": [_state(state) for state in ports.states]},
        }
    )


def of_python(name: str, contract: Contract, limits: Limits | None) -> str:
    """A pool of edgemem's own holds the state of each sequence; without limits, it travels as one snapshot."""
    state = Port(SNAPSHOT, "uint8", (-1,))
    data = [Port(spec.name, spec.dtype, (-1, *spec.item_shape)) for spec in contract.data]
    held = [Port(spec.name, spec.dtype, spec.shape or (1,)) for spec in contract.held]
    outputs = [Port(spec.name, spec.host_dtype, (-1, *spec.item_shape)) for spec in contract.output_specs]
    parameters = {"slots": limits.streams} if limits else {}
    return text(
        {
            "name": name,
            "backend": "python",
            "max_batch_size": limits.batch if limits else 1,
            "input": [*_tensors(data), *({**tensor, "optional": True} for tensor in _tensors([*held, state]))],
            "output": _tensors([*outputs, state]),
            **({"sequence_batching": _sequences(limits)} if limits else {}),
            "instance_group": [{"kind": Word("KIND_CPU"), "count": 1}],
            "parameters": [{"key": key, "value": {"string_value": str(value)}} for key, value in parameters.items()],
        }
    )


def _sequences(limits: Limits) -> dict[str, Any]:
    return {
        "max_sequence_idle_microseconds": limits.idle_s * _MICROSECONDS,
        "oldest": {"max_candidate_sequences": limits.streams},
    }


def _state(state: StatePort) -> dict[str, Any]:
    data = {"zero_data": True} if state.starts_at_zero else {"data_file": state.past.name}
    first = {"name": state.past.name, "data_type": Word(state.past.triton_dtype), "dims": list(state.past.dims), **data}
    return {
        "input_name": state.past.name,
        "output_name": state.present.name,
        "data_type": Word(state.past.triton_dtype),
        "dims": list(state.past.dims),
        "initial_state": [first],
    }


def _tensors(ports: Iterable[Port]) -> list[dict[str, Any]]:
    return [{"name": p.name, "data_type": Word(p.triton_dtype), "dims": list(p.dims)} for p in ports]


def text(fields: Mapping[str, Any], indent: str = "") -> str:
    """A message in protocol buffers' text format; lists are repeated fields.

    >>> print(text({"name": "x", "dims": [1, 2], "input": [{"optional": True}]}), end="")
    name: "x"
    dims: [1, 2]
    input {
      optional: true
    }
    """
    return "".join(_field(name, value, indent) for name, value in fields.items())


def _field(name: str, value: Any, indent: str) -> str:
    if isinstance(value, Mapping):
        return f"{indent}{name} {{\n{text(value, f'{indent}  ')}{indent}}}\n"
    if isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping) for item in value):
            return "".join(_field(name, item, indent) for item in value)
        return f"{indent}{name}: [{', '.join(map(_scalar, value))}]\n" if value else ""
    return f"{indent}{name}: {_scalar(value)}\n"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and not isinstance(value, Word):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    return str(value)
