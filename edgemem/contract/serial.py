"""The parts of a contract as JSON: version 2 is written, versions 1 and 2 are read."""

from __future__ import annotations

import base64
import contextlib
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from edgemem.contract.axes import insert_axes, remove_axes
from edgemem.contract.front_end import Framing, OverlapAdd, end_from_json, end_to_json
from edgemem.contract.specs import InputSpec, OutputSpec, StateSpec
from edgemem.errors import ContractError
from edgemem.versioned import JsonFormat

CONTRACT = JsonFormat(
    "edgemem.contract",
    "an edgemem contract",
    ContractError,
    way_out="export the model again with: edgemem export SOURCE --out BUNDLE",
    versions=(1, 2),
)

_OPTIONAL = ("max_position", "one_stream")


@contextlib.contextmanager
def reading(where: str) -> Iterator[None]:
    """Every error inside the block becomes a ContractError that names the file and the way out."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{where}: {error.message}", hint=error.hint or CONTRACT.hint) from error
    except KeyError as error:
        raise CONTRACT.refusal(f"{where} is malformed: it has no {error}.") from error
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise CONTRACT.refusal(f"{where} is malformed: {error}.") from error


def contract_fields(data: dict[str, Any]) -> dict[str, Any]:
    """The fields of a contract from its JSON, of any version known here; see :func:`reading` for its errors."""
    first = {1: ("input", "output"), 2: ("inputs", "outputs")}[data["version"]]
    options = ("position", "output_indices", "max_chunk")
    _refuse_unknown(data, ("format", "version", *first, "states", *options, *_OPTIONAL))
    fields = _READERS[data["version"]](data)
    for state, entry in zip(fields["states"], data["states"], strict=True):
        if entry.get("bytes") != state.nbytes:
            raise ContractError(
                f"state {state.name!r}: the contract has {entry.get('bytes')} bytes, its shape {state.nbytes}."
            )
    optional = {key: data[key] for key in _OPTIONAL if data.get(key) is not None}
    return {**fields, **{key: data[key] for key in options}, **optional}


def input_to_json(spec: InputSpec) -> dict[str, Any]:
    """An input as plain JSON values, its axes in the graph's order."""
    found: dict[str, Any] = {
        "name": spec.name,
        "dtype": spec.dtype,
        "axes": insert_axes(spec.shape, {"batch": spec.batch_axis, "time": spec.time_axis}),
        "role": spec.role,
        "takes": spec.takes,
    }
    if spec.vocab_size is not None:
        found["vocab_size"] = spec.vocab_size
    if spec.role == "fixed":
        found["value"] = np.asarray(spec.value).tolist()
    if spec.front_end is not None:
        found["front_end"] = end_to_json(spec.front_end)
    if spec.sample_rate_hz is not None:
        found["sample_rate_hz"] = spec.sample_rate_hz
    return found


def output_to_json(spec: OutputSpec, selected: bool) -> dict[str, Any]:
    """An output as plain JSON values; ``selected``: its time axis holds the steps asked for."""
    time = "selected" if selected else "time"
    found: dict[str, Any] = {
        "name": spec.name,
        "dtype": spec.dtype,
        "axes": insert_axes(spec.shape, {"batch": spec.batch_axis, time: spec.time_axis}),
        "gives": spec.gives,
    }
    if spec.back_end is not None:
        found["back_end"] = end_to_json(spec.back_end)
    return found


def state_to_json(state: StateSpec) -> dict[str, Any]:
    """A state as plain JSON values, with its names in the graph and its bytes."""
    axes: list[int | str] = ["length" if size is None else size for size in state.shape]
    if state.batch_axis is not None:
        axes.insert(state.batch_axis, "batch")
    initial = state.initial
    return {
        "name": state.name,
        "input": state.input_name,
        "output": state.output_name,
        "axes": axes,
        "dtype": state.dtype,
        "initial": {"base64": base64.b64encode(initial).decode()} if isinstance(initial, bytes) else initial,
        "update": state.update,
        "bytes": state.nbytes,
    }


def _version_2(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_specs": tuple(_input_from_json(entry) for entry in data["inputs"]),
        "output_specs": tuple(_output_from_json(entry, data["output_indices"]) for entry in data["outputs"]),
        "states": tuple(_state_from_json(entry) for entry in data["states"]),
    }


def _input_from_json(entry: dict[str, Any]) -> InputSpec:
    options = ("vocab_size", "value", "front_end", "sample_rate_hz")
    _refuse_unknown(entry, ("name", "dtype", "axes", "role", "takes", *options))
    owner = f"input {entry['name']!r}"
    shape, (batch, time) = remove_axes(owner, entry["axes"], ("batch", "time"))
    front_end = end_from_json(owner, entry.get("front_end"))
    if isinstance(front_end, OverlapAdd):
        raise ContractError(f"{owner}: a front end is framing or stft, got {entry['front_end']}.")
    return InputSpec(
        entry["name"],
        shape,
        entry["dtype"],
        vocab_size=entry.get("vocab_size"),
        role=entry["role"],
        takes=entry["takes"],
        batch_axis=batch,
        time_axis=time,
        value=_tuples(entry.get("value")),
        front_end=front_end,
        sample_rate_hz=entry.get("sample_rate_hz"),
    )


def _output_from_json(entry: dict[str, Any], selected: bool) -> OutputSpec:
    _refuse_unknown(entry, ("name", "dtype", "axes", "gives", "back_end"))
    owner = f"output {entry['name']!r}"
    shape, (batch, time) = remove_axes(owner, entry["axes"], ("batch", "selected" if selected else "time"))
    back_end = end_from_json(owner, entry.get("back_end"))
    if isinstance(back_end, Framing):
        raise ContractError(f"{owner}: a back end is stft or overlap_add, got {entry['back_end']}.")
    return OutputSpec(
        entry["name"], shape, entry["dtype"], gives=entry["gives"], batch_axis=batch, time_axis=time, back_end=back_end
    )


def _state_from_json(entry: dict[str, Any]) -> StateSpec:
    _refuse_unknown(entry, ("name", "input", "output", "axes", "dtype", "initial", "update", "bytes"))
    name, update, initial = entry["name"], entry["update"], entry["initial"]
    axes = list(entry["axes"])
    grows = axes.index("length") if "length" in axes else None
    fixed = [1 if axis == "length" else axis for axis in axes]
    shape, (batch,) = remove_axes(f"state {name!r}", fixed, ("batch",))
    sizes: list[int | None] = list(shape)
    if grows is not None:
        sizes[grows - (batch is not None and batch < grows)] = None
    plain = StateSpec(name, tuple(sizes), entry["dtype"], update=update, batch_axis=batch)
    names = {key: entry[key] for key in ("input", "output") if entry[key] != getattr(plain, f"{key}_name")}
    if isinstance(initial, dict):
        initial = base64.b64decode(initial["base64"], validate=True)
    return StateSpec(name, tuple(sizes), entry["dtype"], update=update, initial=initial, batch_axis=batch, **names)


def _version_1(data: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_specs": (InputSpec(**{**data["input"], "shape": tuple(data["input"]["shape"])}),),
        "output_specs": (OutputSpec(**{**data["output"], "shape": tuple(data["output"]["shape"])}),),
        "states": tuple(_version_1_state(entry) for entry in data["states"]),
    }


def _version_1_state(entry: dict[str, Any]) -> StateSpec:
    shape = tuple(None if size == "length" else operator.index(size) for size in entry["shape"][1:])
    state = StateSpec(entry["name"], shape, entry["dtype"], update=entry["update"], initial=entry["initial"])
    derived = {"input": state.input_name, "output": state.output_name}
    stated = {key: entry.get(key) for key in derived}
    if stated != derived:
        raise ContractError(f"state {state.name!r}: the contract has {stated}, which should be {derived}.")
    return state


def _refuse_unknown(entry: dict[str, Any], known: tuple[str, ...]) -> None:
    if unknown := sorted(set(entry) - set(known)):
        owner = repr(entry["name"]) if "name" in entry else "the contract"
        raise ContractError(f"{owner} has {', '.join(map(str, unknown))}, which this version does not know.")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


_READERS: dict[Any, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _version_1, 2: _version_2}
