"""Everything a host must know to drive a graph, and the rules that hold between its parts."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from edgemem.contract.front_end import Framing, OverlapAdd, Stft
from edgemem.contract.serial import CONTRACT, contract_fields, input_to_json, output_to_json, reading, state_to_json
from edgemem.contract.specs import InputSpec, OutputSpec, StateSpec
from edgemem.contract.tensors import TensorSpec, Times, graph_inputs, graph_outputs
from edgemem.errors import ContractError


@dataclass(frozen=True)
class _AnyTimes:
    """A graph that takes calls of any length: what names and dtypes are derived for."""

    min_time: int = 1
    max_time: int = 2


@dataclass(frozen=True)
class Contract:
    """What a graph takes, gives and carries.

    Attributes:
        input_specs: What the host gives, in the graph's order; at least one has the role ``"data"``.
        output_specs: What a call computes, in the graph's order.
        states: Every tensor carried between calls.
        max_chunk: Most steps of one call. No ring is shorter than this.
        position: ``"input"``: the graph takes ``position`` int64 ``[B]`` and the host advances it by ``T``.
            ``"none"``: the model does not look at its position, or carries it as a state (sealed graphs carry it as
            the state named ``position``).
        output_indices: Whether the graph takes ``output_indices`` int64 ``[S]``: which of the ``T`` steps to compute
            outputs for, so that a prefill does not compute logits that nobody reads.
        max_position: Most steps of a stream: a model that keeps its whole past up to a length computes something
            else beyond it. ``None`` for a model that streams for ever.
        one_stream: Whether a call computes exactly one stream: every batch axis has size 1 in the graph.
    """

    input_specs: tuple[InputSpec, ...]
    output_specs: tuple[OutputSpec, ...]
    states: tuple[StateSpec, ...]
    max_chunk: int = 256
    position: Literal["input", "none"] = "input"
    output_indices: bool = False
    max_position: int | None = None
    one_stream: bool = False
    _by_name: dict[str, StateSpec] = field(init=False, repr=False, compare=False, default_factory=dict)
    _as_read: dict[str, Any] | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        self._by_name.update({state.name: state for state in self.states})
        if len(self._by_name) != len(self.states):
            raise ContractError(f"two states share a name: {sorted(state.name for state in self.states)}")
        self._check_options()
        self._check_specs()
        for names in (self.graph_inputs, self.graph_outputs):
            if len(set(names)) != len(names):
                raise ContractError(f"two graph inputs or outputs share a name: {', '.join(names)}.")
        for state in self.states:
            if state.window is not None and state.window < self.max_chunk:
                raise ContractError(
                    f"state {state.name!r}: a ring of {state.window} slots cannot take a chunk of {self.max_chunk}.",
                    hint=f"Set max_chunk to {state.window} or less.",
                )
            if state.update == "append" and self.position != "input":
                raise ContractError(f"state {state.name!r} is appended, which needs position='input'.")

    def _check_options(self) -> None:
        if self.position not in ("input", "none"):
            raise ContractError(f"position {self.position!r} is neither 'input' nor 'none'.")
        if not isinstance(self.output_indices, bool):
            raise ContractError(f"output_indices must be true or false, got {self.output_indices!r}.")
        if not isinstance(self.one_stream, bool):
            raise ContractError(f"one_stream must be true or false, got {self.one_stream!r}.")
        if type(self.max_chunk) is not int or not 1 <= self.max_chunk < 1 << 31:
            raise ContractError(f"max_chunk must be 1 or more, and of 31 bits or fewer, got {self.max_chunk}.")
        limit = self.max_position
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise ContractError(f"max_position must be 1 or more, got {limit!r}.")

    def _check_specs(self) -> None:
        if not self.data or not self.output_specs:
            raise ContractError("a contract needs an input with the role 'data', and an output.")
        specs: tuple[InputSpec | OutputSpec, ...] = (*self.data, *self.output_specs)
        timeless = [spec.name for spec in specs if spec.time_axis is None]
        if self.max_chunk > 1 and timeless:
            raise ContractError(
                f"{timeless[0]!r} has no time axis, so a call takes one step: max_chunk must be 1, "
                f"got {self.max_chunk}."
            )
        if self.output_indices and (timeless or any(not _is_plain(spec) for spec in specs)):
            raise ContractError("output_indices needs inputs and outputs of one item a step, with a time axis.")
        batched = [spec.batch_axis is not None for spec in (*specs, *self.states)]
        if any(batched) and not all(batched) and self.position == "input":
            raise ContractError("position is [B], so every input, output and state needs a batch axis.")

    def __getitem__(self, name: str) -> StateSpec:
        return self._by_name[name]

    def __iter__(self) -> Iterator[StateSpec]:
        return iter(self.states)

    @property
    def data(self) -> tuple[InputSpec, ...]:
        """The inputs that every step consumes."""
        return tuple(spec for spec in self.input_specs if spec.role == "data")

    @property
    def held(self) -> tuple[InputSpec, ...]:
        """The inputs that a stream is given once."""
        return tuple(spec for spec in self.input_specs if spec.role == "held")

    @property
    def input(self) -> InputSpec:
        """The first input with the role ``"data"``: for most models the only one."""
        return self.data[0]

    @property
    def output(self) -> OutputSpec:
        """The first output: for most models the only one."""
        return self.output_specs[0]

    @property
    def is_plain(self) -> bool:
        """Whether a step is one item of one input to one item of one output, with nothing held and nothing computed
        before or after the graph: what version 1 could describe."""
        specs: tuple[InputSpec | OutputSpec, ...] = (*self.data, *self.output_specs)
        return len(specs) == 2 and not self.held and all(_is_plain(spec) for spec in specs)

    def require_plain(self, who: str) -> None:
        """Refuse a model that takes or gives more than one item of one tensor at a step.

        Args:
            who: What drives plain models alone, in words.

        Raises:
            ContractError: The contract is not plain.
        """
        if not self.is_plain:
            takes = ", ".join(f"{spec.step_items} of {spec.name}" for spec in self.data)
            gives = ", ".join(f"{spec.step_items} of {spec.name}" for spec in self.output_specs)
            raise ContractError(
                f"{who} drives models of one input and one output, one item at a step; a step of this one takes "
                f"{takes} and gives {gives}{', with held inputs' if self.held else ''}.",
                hint="Drive it from Python with Stream.step and Stream.feed: see docs/run.md.",
            )

    @property
    def has_batches(self) -> bool:
        """Whether several streams can advance in one call: everything has a batch axis, whose size a call chooses."""
        specs: tuple[InputSpec | OutputSpec | StateSpec, ...] = (
            *self.data, *self.held, *self.output_specs, *self.states,
        )  # fmt: skip
        return not self.one_stream and all(spec.batch_axis is not None for spec in specs)

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

    def inputs(self, graph: Times) -> tuple[TensorSpec, ...]:
        """Every input of a graph that keeps this contract, in order, with dtype and axes."""
        return graph_inputs(self, graph)

    def outputs(self, graph: Times) -> tuple[TensorSpec, ...]:
        """Every output of a graph that keeps this contract, in order, with dtype and axes."""
        return graph_outputs(self, graph)

    @property
    def graph_inputs(self) -> tuple[str, ...]:
        """Names of a graph's inputs, in order."""
        return tuple(tensor.name for tensor in self.inputs(_AnyTimes()))

    @property
    def graph_outputs(self) -> tuple[str, ...]:
        """Names of a graph's outputs, in order."""
        return tuple(tensor.name for tensor in self.outputs(_AnyTimes()))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The contract as plain JSON values: as it was read where it was read, else in the newest version.

        So a bundle of an older version keeps its fingerprint.
        """
        if self._as_read is not None:
            return copy.deepcopy(self._as_read)
        return CONTRACT.stamp(
            {
                "inputs": [input_to_json(spec) for spec in self.input_specs],
                "outputs": [output_to_json(spec, self.output_indices) for spec in self.output_specs],
                "position": self.position,
                "output_indices": self.output_indices,
                "max_chunk": self.max_chunk,
                **({} if self.max_position is None else {"max_position": self.max_position}),
                **({"one_stream": True} if self.one_stream else {}),
                "states": [state_to_json(state) for state in self.states],
            }
        )

    @classmethod
    def from_json(cls, data: Any, where: str = "the contract") -> Contract:
        """Read what :meth:`to_json` wrote, today or in version 1.

        Args:
            data: The JSON.
            where: What it is called in messages.

        Raises:
            ContractError: The JSON is not a contract of a version known here, or contradicts itself.
        """
        CONTRACT.check(data, where)
        with reading(where):
            contract = cls(**contract_fields(data))
        object.__setattr__(contract, "_as_read", data)
        return contract


def _is_plain(spec: InputSpec | OutputSpec) -> bool:
    front = spec.front_end if isinstance(spec, InputSpec) else spec.back_end
    return spec.step_items == 1 and spec.time_axis is not None and not isinstance(front, Framing | Stft | OverlapAdd)
