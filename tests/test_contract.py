"""The state contract survives JSON, pairs its names, and refuses what contradicts itself."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgemem.bundle import GraphFile
from edgemem.contract import (
    Contract,
    FoundTensor,
    InputSpec,
    OutputSpec,
    Sizes,
    StateSpec,
    TensorSpec,
    difference,
    initial_state,
)
from edgemem.dtypes import DType, element_type, numpy_dtype
from edgemem.errors import ContractError

TOKENS = InputSpec("tokens", (), "int64", 256)
LOGITS = OutputSpec("logits", (256,))

part = st.from_regex(r"[A-Za-z0-9_]{1,6}", fullmatch=True)
names = st.lists(part, min_size=1, max_size=3).map(".".join)
sizes = st.integers(1, 40)
dtypes = st.sampled_from(get_args(DType))


@st.composite
def state_specs(draw: st.DrawFn, max_chunk: int, append: bool) -> StateSpec:
    name, dtype = draw(names), draw(dtypes)
    initial = draw(st.floats(-100, 100, width=32)) if "float" in dtype else float(draw(st.integers(0, 1)))
    if append and draw(st.booleans()):
        ring = (draw(sizes), max_chunk + draw(st.integers(0, 9)), draw(sizes))
        return StateSpec(name, ring, dtype, "append", initial)
    shape: list[int | None] = list(draw(st.lists(sizes, max_size=3)))
    if draw(st.booleans()):
        shape.insert(draw(st.integers(0, len(shape))), None)
    return StateSpec(name, tuple(shape), dtype, "replace", initial)


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    max_chunk = draw(st.integers(1, 64))
    position: Literal["input", "none"] = draw(st.sampled_from(["input", "none"]))
    states = state_specs(max_chunk, append=position == "input")
    vocab_size = draw(st.none() | sizes)
    return Contract(
        input_specs=(
            draw(st.sampled_from([TOKENS, InputSpec("audio", (), takes=4, sample_rate_hz=16_000)]))
            if vocab_size is None
            else InputSpec("ids", (), draw(st.sampled_from(["int64", "int32"])), vocab_size),
        ),
        output_specs=(OutputSpec(draw(part), tuple(draw(st.lists(sizes, max_size=2))), draw(dtypes)),),
        states=tuple(draw(st.lists(states, max_size=5, unique_by=lambda state: state.name))),
        max_chunk=max_chunk,
        position=position,
        output_indices=vocab_size is not None and draw(st.booleans()),
        max_position=draw(st.none() | st.integers(1, 10**6)),
        one_stream=draw(st.booleans()),
    )


@settings(max_examples=100, deadline=None)
@given(contract=contracts())
def test_a_contract_survives_json(contract: Contract) -> None:
    again = Contract.from_json(json.loads(json.dumps(contract.to_json())))
    assert again == contract
    assert again.fingerprint == contract.fingerprint


@settings(max_examples=100, deadline=None)
@given(contract=contracts())
def test_sorting_the_names_pairs_every_input_with_its_own_output(contract: Contract) -> None:
    inputs = sorted(name for name in contract.graph_inputs if name.startswith("past."))
    for prefix in ("present", "append"):
        outputs = sorted(name for name in contract.graph_outputs if name.startswith(f"{prefix}."))
        kept = [name for name in inputs if contract[name.removeprefix("past.")].output_name.startswith(prefix)]
        assert [name.split(".", 1)[1] for name in kept] == [name.split(".", 1)[1] for name in outputs]
    assert len(inputs) == len(contract.states)


def test_graph_names_come_in_a_fixed_order() -> None:
    states = (StateSpec("0.window.k", (2, 8, 4), update="append"), StateSpec("0.cumulative.mean", (4, 1, 4)))
    contract = Contract((TOKENS,), (LOGITS,), states, max_chunk=8, output_indices=True)
    assert contract.graph_inputs == (
        "tokens",
        "position",
        "output_indices",
        "past.0.window.k",
        "past.0.cumulative.mean",
    )
    assert contract.graph_outputs == ("logits", "append.0.window.k", "present.0.cumulative.mean")
    assert Contract((TOKENS,), (LOGITS,), (), position="none").graph_inputs == ("tokens",)


def test_states_are_found_by_name_and_come_in_order() -> None:
    states = (StateSpec("b", (1,)), StateSpec("a", (2,)))
    contract = Contract((TOKENS,), (LOGITS,), states)
    assert tuple(contract) == states
    assert contract["a"] is states[1]
    with pytest.raises(KeyError):
        contract["c"]


# Bytes


@settings(max_examples=50, deadline=None)
@given(contract=contracts(), position=st.integers(1, 1000), batch=st.integers(1, 3))
def test_bytes_are_those_of_the_tensors(contract: Contract, position: int, batch: int) -> None:
    total = 0
    for state in contract:
        value = initial_state(state, batch)
        assert value.shape == (batch, *state.fixed_shape)
        assert value.dtype == numpy_dtype(state.dtype)
        assert value.nbytes == batch * state.nbytes
        grown = np.empty([position if size is None else size for size in state.shape], numpy_dtype(state.dtype))
        assert grown.nbytes == state.nbytes_at(position)
        total += grown.nbytes
    assert contract.state_bytes_at(position) == total
    assert contract.has_fixed_size == (contract.state_bytes_at(1) == contract.state_bytes_at(10**6))


@pytest.mark.parametrize("dtype", get_args(DType))
def test_every_dtype_has_its_item_size(dtype: str) -> None:
    assert numpy_dtype(dtype).itemsize == element_type(dtype).nbytes


def test_an_initial_value_fills_the_state() -> None:
    assert (initial_state(StateSpec("peak", (2, 3), initial=-1e9), 4) == np.float32(-1e9)).all()
    assert initial_state(StateSpec("count", (), "int64", initial=3), 2).tolist() == [3, 3]


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 0.1, -1e9, 3.0e38, 1.00390625, 1.01171875, float("-inf")])
def test_an_initial_bfloat16_is_the_nearest_one(value: float) -> None:
    bits = initial_state(StateSpec("s", (), "bfloat16", initial=value), 1)
    torch = pytest.importorskip("torch")
    assert bits.dtype == np.uint16
    assert torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)[0] == torch.tensor(value, dtype=torch.bfloat16)


# The fingerprint


BASE = Contract(
    (TOKENS,),
    (LOGITS,),
    (StateSpec("0.window.k", (2, 8, 4), update="append"), StateSpec("0.cumulative.mean", (4, 1, 4))),
    max_chunk=8,
)
OTHERS: list[dict[str, Any]] = [
    {"input_specs": (InputSpec("tokens", (), "int64", 255),)},
    {"output_specs": (OutputSpec("logits", (255,)),)},
    {"output_specs": (OutputSpec("logits", (256,), "float16"),)},
    {"states": BASE.states[::-1]},
    {"states": BASE.states[:1]},
    {"states": (BASE.states[0], StateSpec("0.cumulative.mean", (4, 1, 4), initial=1.0))},
    {"states": (BASE.states[0], StateSpec("0.cumulative.mean", (4, 1, 4), "float16"))},
    {"max_chunk": 7},
    {"output_indices": True},
    {"max_position": 100},
    {"one_stream": True},
]


@pytest.mark.parametrize("change", OTHERS)
def test_the_fingerprint_changes_with_anything_in_the_contract(change: dict[str, Any]) -> None:
    same = Contract((BASE.input,), (BASE.output,), BASE.states, BASE.max_chunk)
    assert same.fingerprint == BASE.fingerprint
    assert replace(BASE, **change).fingerprint != BASE.fingerprint


# Refusals


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a/b", "../a", "a-b", "é", "a\n"])
def test_a_state_name_that_is_not_parts_joined_by_dots_is_refused(name: str) -> None:
    with pytest.raises(ContractError, match="a name is letters"):
        StateSpec(name, (1,))


@pytest.mark.parametrize("shape", [(0,), (-1, 2), (None, None), (2, None, None)])
def test_a_state_shape_with_no_size_or_two_growing_axes_is_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(ContractError, match="shape"):
        StateSpec("s", shape)


@pytest.mark.parametrize("shape", [(), (4,), (2, 4), (2, 4, 4, 4), (2, None, 4)])
def test_an_appended_state_that_is_no_ring_is_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(ContractError, match="appended"):
        StateSpec("s", shape, update="append")


BROKEN: list[tuple[Callable[[], object], str]] = [
    (lambda: StateSpec("s", (1,), dtype="float64"), "float64"),  # type: ignore[arg-type]
    (lambda: StateSpec("s", (1,), update="add"), "add"),  # type: ignore[arg-type]
    (lambda: StateSpec("s", (1,), initial="zero"), "zero"),  # type: ignore[arg-type]
    (lambda: InputSpec("x", (2,), "double"), "double"),  # type: ignore[arg-type]
    (lambda: InputSpec("x", (0,)), "shape"),
    (lambda: InputSpec("", (1,)), "name"),
    (lambda: InputSpec("x", (), "int64", 0), "vocabulary"),
    (lambda: InputSpec("x", (), "float32", 5), "vocabulary"),
    (lambda: InputSpec("x", (), "int64", 1.5), "vocabulary"),  # type: ignore[arg-type]
    (lambda: InputSpec("x", (), sample_rate_hz=0), "sample_rate_hz must be 1 or more, got 0"),
    (lambda: InputSpec("x", (2, 2), sample_rate_hz=8000), "samples, or channels"),
    (lambda: InputSpec("x", role="held", sample_rate_hz=8000), "samples, or channels"),
    (lambda: InputSpec("x", (1 << 20, 1 << 20)), "4,398,046,511,104 bytes for each stream"),
    (lambda: OutputSpec("y", (2,), gives=1 << 40), "bytes for each stream"),
    (lambda: StateSpec("s", (1 << 62, 1 << 62)), "bytes for each stream"),
    (lambda: StateSpec("s", (1,), input=0), "must be text"),  # type: ignore[arg-type]
    (lambda: StateSpec("s", (1,), "int32", initial=1 << 40), "is no int32"),
    (lambda: StateSpec("s", (1,), "int32", initial=float("inf")), "is no int32"),
    (lambda: OutputSpec("y", (3,), "complex64"), "complex64"),  # type: ignore[arg-type]
    (lambda: OutputSpec("y", (2, -3)), "shape"),
    (lambda: Contract((TOKENS,), (LOGITS,), (StateSpec("s", (1,)), StateSpec("s", (2,)))), "share a name"),
    (lambda: Contract((InputSpec("past.s"),), (LOGITS,), (StateSpec("s", (1,)),)), "share a name"),
    (lambda: Contract((InputSpec("position"),), (LOGITS,), ()), "share a name"),
    (lambda: Contract((TOKENS,), (OutputSpec("present.s", (1,)),), (StateSpec("s", (1,)),)), "share a name"),
    (lambda: Contract((TOKENS,), (LOGITS,), (), max_chunk=0), "max_chunk"),
    (lambda: Contract((TOKENS,), (LOGITS,), (), max_chunk=2.5), "max_chunk"),  # type: ignore[arg-type]
    (lambda: Contract((TOKENS,), (LOGITS,), (), max_chunk=1 << 31), "max_chunk"),
    (lambda: Contract((TOKENS,), (LOGITS,), (), max_position=0), "max_position"),
    (lambda: Contract((TOKENS,), (LOGITS,), (), max_position=True), "max_position"),
    (lambda: Contract((TOKENS,), (LOGITS,), (), one_stream=1), "one_stream"),  # type: ignore[arg-type]
    (lambda: Contract((TOKENS,), (LOGITS,), (), position="given"), "given"),  # type: ignore[arg-type]
    (lambda: Contract((TOKENS,), (LOGITS,), (), output_indices="no"), "output_indices"),  # type: ignore[arg-type]
    (lambda: Contract((TOKENS,), (LOGITS,), (StateSpec("s", (1, 7, 1), update="append"),), max_chunk=8), "ring of 7"),
    (
        lambda: Contract(
            (TOKENS,), (LOGITS,), (StateSpec("s", (1, 8, 1), update="append"),), max_chunk=8, position="none"
        ),
        "position",
    ),
]


@pytest.mark.parametrize(("make", "named"), BROKEN)
def test_what_no_host_could_drive_is_refused(make: Callable[[], object], named: str) -> None:
    with pytest.raises(ContractError, match=named):
        make()


# Version 1, as edgemem 0.1.0 wrote it; and version 2.

VERSION_1: dict[str, Any] = {
    "format": "edgemem.contract",
    "version": 1,
    "input": {"name": "tokens", "shape": [], "dtype": "int64", "vocab_size": 256},
    "output": {"name": "logits", "shape": [256], "dtype": "float32"},
    "position": "input",
    "output_indices": False,
    "max_chunk": 8,
    "states": [
        {
            "name": "0.window.k",
            "input": "past.0.window.k",
            "output": "append.0.window.k",
            "shape": ["batch", 2, 8, 4],
            "dtype": "float32",
            "initial": 0.0,
            "update": "append",
            "bytes": 256,
        },
        {
            "name": "0.cumulative.mean",
            "input": "past.0.cumulative.mean",
            "output": "present.0.cumulative.mean",
            "shape": ["batch", 4, 1, 4],
            "dtype": "float32",
            "initial": 0.0,
            "update": "replace",
            "bytes": 64,
        },
    ],
}


def test_version_1_reads_as_the_same_contract() -> None:
    assert Contract.from_json(VERSION_1) == BASE


def test_a_contract_keeps_the_fingerprint_of_the_json_it_was_read_from() -> None:
    canonical = json.dumps(VERSION_1, sort_keys=True, separators=(",", ":")).encode()
    assert Contract.from_json(VERSION_1).fingerprint == hashlib.sha256(canonical).hexdigest()
    assert (
        Contract.from_json(BASE.to_json()).fingerprint == BASE.fingerprint != Contract.from_json(VERSION_1).fingerprint
    )
    assert (
        replace(Contract.from_json(VERSION_1), max_chunk=8).fingerprint == BASE.fingerprint
    )  # no longer as it was read


def edited(data: Any, path: list[Any], value: Any) -> Any:
    data = copy.deepcopy(data)
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


@pytest.mark.parametrize("data", [None, 3, "edgemem.contract", [], {}, {"format": "onnx"}])
def test_json_that_is_no_contract_is_refused(data: Any) -> None:
    with pytest.raises(ContractError, match=r"the contract is (not an edgemem contract|malformed: .*wanted an object)"):
        Contract.from_json(data)


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_a_contract_of_another_version_is_refused_with_a_way_out(version: Any) -> None:
    with pytest.raises(ContractError, match=f"version {version!r}, this edgemem reads versions 1 and 2") as refusal:
        Contract.from_json(edited(BASE.to_json(), ["version"], version))
    assert refusal.value.hint


TAMPERED_IN_BOTH: list[tuple[list[Any], Any]] = [
    *(([key], ...) for key in ("position", "output_indices", "max_chunk", "states")),
    *((["states", 0, key], ...) for key in ("name", "dtype", "update", "initial", "input", "output", "bytes")),
    (["position"], "somewhere"),
    (["output_indices"], "yes"),
    (["max_chunk"], "8"),
    (["max_chunk"], 9),
    (["max_position"], 0),
    (["max_position"], "100"),
    (["one_stream"], 1),
    (["states"], 3),
    (["states"], [3]),
    (["states", 0, "name"], 3),
    (["states", 0, "name"], "0.cumulative.mean"),
    (["states", 0, "dtype"], ["float32"]),
    (["states", 0, "dtype"], "float16"),
    (["states", 0, "initial"], None),
    (["states", 0, "bytes"], 3),
]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *TAMPERED_IN_BOTH,
        (["input"], ...),
        (["output"], ...),
        (["states", 0, "shape"], ...),
        (["input"], 3),
        (["input", "extra"], 3),
        (["input", "shape"], "abc"),
        (["output", "shape"], [2.5]),
        (["states", 0, "shape"], ["batch", 2, 8.0, 4]),
        (["states", 0, "shape"], ["batch", 2, 9, 4]),
        (["states", 0, "shape"], []),
        (["states", 0, "update"], "replace"),
        (["states", 0, "input"], "past.1.window.k"),
    ],
)
def test_a_contract_of_version_1_that_was_tampered_with_is_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(ContractError):
        Contract.from_json(edited(VERSION_1, path, value))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        *TAMPERED_IN_BOTH,
        *(([key], ...) for key in ("inputs", "outputs")),
        *((["inputs", 0, key], ...) for key in ("name", "axes", "dtype", "role", "takes")),
        *((["outputs", 0, key], ...) for key in ("name", "axes", "dtype", "gives")),
        (["inputs"], []),
        (["outputs"], []),
        (["inputs"], 3),
        (["inputs", 0, "extra"], 3),
        (["outputs", 0, "extra"], 3),
        (["states", 0, "extra"], 3),
        (["inputs", 0, "axes"], "abc"),
        (["inputs", 0, "axes"], ["batch", "batch", "time"]),
        (["inputs", 0, "axes"], ["batch", "length"]),
        (["inputs", 0, "takes"], 0),
        (["inputs", 0, "role"], "given"),
        (["inputs", 0, "value"], 3),
        (["inputs", 0, "front_end"], {"kind": "mel"}),
        (["inputs", 0, "front_end"], {"kind": "framing", "context": 2}),  # of tokens
        (["inputs", 0, "sample_rate_hz"], 16_000),  # of tokens
        (["outputs", 0, "axes"], ["batch", "time", 2.5]),
        (["outputs", 0, "gives"], "1"),
        (["outputs", 0, "back_end"], {"kind": "framing", "context": 2}),
        (["outputs", 0, "back_end"], {"kind": "overlap_add", "frame": 4, "hop": 3}),
        (["inputs", 0, "front_end"], {"kind": "overlap_add", "frame": 4, "hop": 2}),
        (["states", 0, "axes"], ["batch", 2, 8.0, 4]),
        (["states", 0, "axes"], ["batch", 2, 9, 4]),
        (["states", 0, "axes"], [2, "batch", 8, 4]),  # a ring has its batch axis first
        (["states", 0, "axes"], []),
        (["states", 0, "initial"], {"base64": "AAAA"}),
        (["states", 0, "initial"], {"base64": "no!"}),
        (["states", 0, "input"], "tokens"),
    ],
)
def test_a_contract_of_version_2_that_was_tampered_with_is_refused(path: list[Any], value: Any) -> None:
    with pytest.raises(ContractError):
        Contract.from_json(edited(BASE.to_json(), path, value))


def test_a_graph_of_one_stream_has_batch_axes_of_size_1() -> None:
    contract = replace(BASE, one_stream=True)
    assert not contract.has_batches
    graph = GraphFile("", 1, 8)
    found = [FoundTensor(t.name, t.dtype, _shape_of_one(t)) for t in contract.inputs(graph)]
    assert difference("input", found, contract.inputs(graph)) == ""
    assert "has shape" in difference("input", found, BASE.inputs(graph))
    assert contract.inputs(graph)[0].shape(Sizes(batch=4, time=3)) == (1, 3)


def _shape_of_one(tensor: TensorSpec) -> tuple[int | None, ...]:
    sizes = {"batch": 1, "time": None, "selected": None}
    return tuple(axis if isinstance(axis, int) else sizes[axis.kind] for axis in tensor.axes)
