"""The state contract: what goes into a graph, what comes out, and what must be carried between calls.

One :class:`Contract` travels with every exported model, as JSON, in the ONNX file's ``metadata_props`` (key
:data:`METADATA_KEY`) and in the bundle's manifest. Everything else in edgemem reads it; see docs/contract.md.

Axes: ``B`` streams (every stream has its own position), ``T`` time steps of one call, ``W`` ring length (window).
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from edgemem.errors import ContractError

METADATA_KEY = "edgemem.contract"
FORMAT = "edgemem.contract"
VERSION = 1

POSITION = "position"
OUTPUT_INDICES = "output_indices"

UpdateRule = Literal["replace", "append"]
DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "bool"]
FloatDType = Literal["float32", "float16", "bfloat16"]
ITEM_BYTES: dict[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "bool": 1}
_KEY = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def _check_dtype(owner: str, dtype: str) -> None:
    if dtype not in get_args(DType):
        raise ContractError(f"{owner}: dtype {dtype!r} is not one of {', '.join(get_args(DType))}.")


def _check_step(owner: str, name: object, shape: tuple[object, ...]) -> None:
    if not isinstance(name, str) or not name:
        raise ContractError(f"{owner}: its name must be text.")
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in shape):
        raise ContractError(f"{owner}: shape {shape} must hold sizes of 1 or more.")


@dataclass(frozen=True)
class InputSpec:
    """The data of a call: ``tokens`` int64 ``[B, T]`` or ``features`` float ``[B, T, F]``.

    Attributes:
        name: Name of the graph input.
        shape: Shape of one time step of one stream: ``()`` for tokens, ``(F,)`` for features.
        dtype: Element type.
        vocab_size: For tokens, ids run from 0 to ``vocab_size - 1``; ``None`` for real-valued features.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: DType = "float32"
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        _check_step(f"input {self.name!r}", self.name, self.shape)
        _check_dtype(f"input {self.name!r}", self.dtype)
        if self.vocab_size is not None and (self.vocab_size < 1 or not self.dtype.startswith("int")):
            raise ContractError(f"input {self.name!r}: a vocabulary of {self.vocab_size} ids of dtype {self.dtype}.")

    @property
    def is_tokens(self) -> bool:
        """Whether the input is token ids rather than real values."""
        return self.vocab_size is not None


@dataclass(frozen=True)
class OutputSpec:
    """What a call computes for each wanted time step: ``logits`` ``[B, S, V]``, or the model's own output.

    Attributes:
        name: Name of the graph output.
        shape: Shape of one time step of one stream, such as ``(V,)``.
        dtype: Element type.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        _check_step(f"output {self.name!r}", self.name, self.shape)
        _check_dtype(f"output {self.name!r}", self.dtype)


@dataclass(frozen=True)
class StateSpec:
    """One tensor that is carried from call to call.

    Attributes:
        name: ``<layer>.<memory>.<tensor>``: the key that the input's and the output's names share.
        shape: Shape for one stream. The graph has a batch axis in front of it. ``None`` marks the one axis of a
            *growing* state (a full KV cache, the baseline): such a model has no fixed size.
        dtype: Element type.
        update: ``"replace"``: the graph puts out the whole new value. ``"append"``: the shape is ``(H, W, D)``, the
            graph puts out only the ``T`` new entries ``[B, H, T, D]``, and the runtime writes entry ``t`` into slot
            ``(position + t) mod W``.
        initial: Value of every element at position 0.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: DType = "float32"
    update: UpdateRule = "replace"
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.name):
            raise ContractError(
                f"state {self.name!r}: a name is letters, digits and '_', in parts joined by '.'",
                hint="For instance '0.window.k'.",
            )
        _check_dtype(f"state {self.name!r}", self.dtype)
        if self.update not in get_args(UpdateRule):
            raise ContractError(f"state {self.name!r}: update rule {self.update!r} is neither 'replace' nor 'append'.")
        if not isinstance(self.initial, int | float):
            raise ContractError(f"state {self.name!r}: initial value {self.initial!r} is no number.")
        if any(size is not None and size < 1 for size in self.shape) or self.shape.count(None) > 1:
            raise ContractError(f"state {self.name!r}: shape {self.shape} must hold sizes of 1 or more.")
        if self.update == "append" and (len(self.shape) != 3 or None in self.shape):
            raise ContractError(f"state {self.name!r}: an appended state is (H, W, D), got shape {self.shape}.")

    @property
    def input_name(self) -> str:
        """Name of the graph input that takes the state."""
        return f"past.{self.name}"

    @property
    def output_name(self) -> str:
        """Name of the graph output that gives the new state, or the new entries of it."""
        return f"{'append' if self.update == 'append' else 'present'}.{self.name}"

    @property
    def growing_axis(self) -> int | None:
        """Index into ``shape`` of the axis that grows by one a step, or ``None``."""
        return self.shape.index(None) if None in self.shape else None

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The shape with a growing axis at length 0."""
        return tuple(size or 0 for size in self.shape)

    @property
    def window(self) -> int | None:
        """Ring length ``W`` of an appended state, else ``None``."""
        return self.fixed_shape[1] if self.update == "append" else None

    @property
    def nbytes(self) -> int:
        """Bytes of the state of one stream; of a growing state, bytes at length 0."""
        return math.prod(self.fixed_shape) * ITEM_BYTES[self.dtype]

    def nbytes_at(self, position: int) -> int:
        """Bytes of the state of one stream after ``position`` steps."""
        if self.growing_axis is None:
            return self.nbytes
        return math.prod(size or position for size in self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Contract:
    """Everything a host must know to drive a graph.

    Attributes:
        input: The data of a call.
        output: What a call computes.
        states: Every tensor carried between calls.
        max_chunk: Most time steps one call takes. No ring is shorter than this.
        position: ``"input"``: the graph takes ``position`` int64 ``[B]`` and the host advances it by ``T``.
            ``"none"``: the model does not look at its position, or carries it as a state of its own (sealed graphs
            carry it as the state named ``position``).
        output_indices: Whether the graph takes ``output_indices`` int64 ``[S]``: which of the ``T`` time steps to
            compute outputs for, so that a prefill does not compute logits that nobody reads.
        max_position: Most time steps of a stream: a model that keeps its whole past up to a length computes something
            else beyond it. ``None`` for a model that streams for ever.
    """

    input: InputSpec
    output: OutputSpec
    states: tuple[StateSpec, ...]
    max_chunk: int = 256
    position: Literal["input", "none"] = "input"
    output_indices: bool = False
    max_position: int | None = None
    _by_name: dict[str, StateSpec] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._by_name.update({state.name: state for state in self.states})
        if len(self._by_name) != len(self.states):
            raise ContractError(f"two states share a name: {sorted(state.name for state in self.states)}")
        if self.position not in ("input", "none"):
            raise ContractError(f"position {self.position!r} is neither 'input' nor 'none'.")
        if not isinstance(self.output_indices, bool):
            raise ContractError(f"output_indices must be true or false, got {self.output_indices!r}.")
        for names in (self.graph_inputs, self.graph_outputs):
            if len(set(names)) != len(names):
                raise ContractError(f"two graph inputs or outputs share a name: {', '.join(names)}.")
        if not isinstance(self.max_chunk, int) or self.max_chunk < 1:
            raise ContractError(f"max_chunk must be 1 or more, got {self.max_chunk}.")
        limit = self.max_position
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ContractError(f"max_position must be 1 or more, got {limit!r}.")
        for state in self.states:
            if state.window is not None and state.window < self.max_chunk:
                raise ContractError(
                    f"state {state.name!r}: a ring of {state.window} slots cannot take a chunk of {self.max_chunk}.",
                    hint=f"Set max_chunk to {state.window} or less.",
                )
            if state.update == "append" and self.position != "input":
                raise ContractError(f"state {state.name!r} is appended, which needs position='input'.")

    def __getitem__(self, name: str) -> StateSpec:
        return self._by_name[name]

    def __iter__(self) -> Iterator[StateSpec]:
        return iter(self.states)

    @property
    def has_fixed_size(self) -> bool:
        """Whether no state grows with the position: false for the full KV cache alone."""
        return all(state.growing_axis is None for state in self.states)

    @property
    def state_bytes(self) -> int:
        """Bytes of the whole state of one stream."""
        return sum(state.nbytes for state in self.states)

    def state_bytes_at(self, position: int) -> int:
        """Bytes of the whole state of one stream after ``position`` steps."""
        return sum(state.nbytes_at(position) for state in self.states)

    @property
    def graph_inputs(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order."""
        extra = [POSITION] * (self.position == "input") + [OUTPUT_INDICES] * self.output_indices
        return (self.input.name, *extra, *(state.input_name for state in self.states))

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        return (self.output.name, *(state.output_name for state in self.states))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The contract as plain JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "input": asdict(self.input),
            "output": asdict(self.output),
            "position": self.position,
            "output_indices": self.output_indices,
            "max_chunk": self.max_chunk,
            **({} if self.max_position is None else {"max_position": self.max_position}),
            "states": [
                {
                    "name": state.name,
                    "input": state.input_name,
                    "output": state.output_name,
                    "shape": ["batch", *("length" if size is None else size for size in state.shape)],
                    "dtype": state.dtype,
                    "initial": state.initial,
                    "update": state.update,
                    "bytes": state.nbytes,
                }
                for state in self.states
            ],
        }

    @classmethod
    def from_json(cls, data: Any) -> Contract:
        """Read what :meth:`to_json` wrote.

        Raises:
            ContractError: The JSON is not a contract of a version known here, or contradicts itself.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise ContractError(f"not an edgemem contract: {str(data)[:80]}")
        if data.get("version") != VERSION:
            raise ContractError(
                f"contract version {data.get('version')}, this edgemem reads version {VERSION}.",
                hint="Export the model again, or install the edgemem that wrote it.",
            )
        try:
            contract = cls(
                input=InputSpec(**{**data["input"], "shape": tuple(data["input"]["shape"])}),
                output=OutputSpec(**{**data["output"], "shape": tuple(data["output"]["shape"])}),
                position=data["position"],
                output_indices=data["output_indices"],
                max_chunk=data["max_chunk"],
                max_position=data.get("max_position"),
                states=tuple(
                    StateSpec(
                        name=state["name"],
                        shape=tuple(None if size == "length" else operator.index(size) for size in state["shape"][1:]),
                        dtype=state["dtype"],
                        update=state["update"],
                        initial=state["initial"],
                    )
                    for state in data["states"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ContractError(f"malformed contract: {type(error).__name__}: {error}") from error
        for state, entry in zip(contract.states, data["states"], strict=True):
            derived = {"input": state.input_name, "output": state.output_name, "bytes": state.nbytes}
            stated = {key: entry.get(key) for key in derived}
            if stated != derived:
                raise ContractError(f"state {state.name!r}: the contract says {stated}, which should be {derived}.")
        return contract


def initial_state(state: StateSpec, batch: int) -> np.ndarray[Any, Any]:
    """The value of ``state`` at position 0, ``[B, *shape]``; bfloat16 comes as its bits in uint16."""
    shape = (batch, *state.fixed_shape)
    if state.dtype == "bfloat16":
        bits = int(np.float32(state.initial).view(np.uint32))
        return np.full(shape, (bits + 0x7FFF + (bits >> 16 & 1)) >> 16, dtype=np.uint16)  # the nearest, ties to even
    return np.full(shape, state.initial, dtype=state.dtype)


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy dtype that stores ``dtype``; bfloat16 is stored as its bits in uint16."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)
