"""What a graph is declared to take, give and carry between calls, tensor by tensor.

Axes: ``B`` streams (each at its own position), ``T`` steps of one call, ``W`` ring length (window). A *step* consumes
``takes`` items of each data input and produces ``gives`` items of each output. Most models take and give one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from edgemem.contract.axes import insert_axes
from edgemem.contract.front_end import BackEnd, Framing, FrontEnd, Stft
from edgemem.dtypes import ELEMENT_TYPES, DType, element_type, encode_bfloat16, numpy_dtype
from edgemem.errors import ContractError

Role = Literal["data", "held", "fixed"]
UpdateRule = Literal["replace", "append"]
_MOST_BYTES = 1 << 36
_KEY = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")


def _check(owner: str, name: object, shape: tuple[int, ...], items: int, dtype: str) -> None:
    """Refuse what is no tensor, or no tensor that a machine could hold: ``items`` of ``shape`` in one step."""
    if not isinstance(name, str) or not name:
        raise ContractError(f"{owner}: its name must be text.")
    if any(not _is_count(size) for size in shape):
        raise ContractError(f"{owner}: shape {shape} must hold sizes of 1 or more.")
    _check_dtype(owner, dtype)
    if _is_count(items):
        _check_size(owner, math.prod(shape) * items * element_type(dtype).nbytes)


def _check_size(owner: str, nbytes: int) -> None:
    if nbytes > _MOST_BYTES:
        raise ContractError(f"{owner}: it takes {nbytes:,} bytes for each stream, at most {_MOST_BYTES:,} are allowed.")


def _check_dtype(owner: str, dtype: str) -> None:
    if dtype not in ELEMENT_TYPES:
        raise ContractError(f"{owner}: dtype {dtype!r} is not one of {', '.join(ELEMENT_TYPES)}.")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True)
class InputSpec:
    """One tensor that the host gives: token ids ``[B, T]``, features ``[B, T, F]``, a speaker's embedding ``[B, D]``.

    Attributes:
        name: Name of the graph input.
        shape: Shape of one item of one stream in the graph: ``()`` for tokens, ``(F,)`` for features.
        dtype: Element type.
        vocab_size: For tokens, ids run from 0 to ``vocab_size - 1``; ``None`` for other values.
        role: ``"data"``: given at every step. ``"held"``: given once for each stream. ``"fixed"``: ``value``.
        takes: Items that one step consumes.
        batch_axis: Where the graph's tensor has its batch axis; ``None`` where it has none.
        time_axis: The same for the time axis, of data alone; without one, a step consumes one item.
        value: What a fixed input is: a number or nested tuples of numbers of ``shape``.
        front_end: What the runtime computes between the host's items and the graph's.
        sample_rate_hz: Items a second, where they are samples of audio between -1 and 1; ``None`` for other data.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: DType = "float32"
    vocab_size: int | None = None
    role: Role = "data"
    takes: int = 1
    batch_axis: int | None = 0
    time_axis: int | None = 1
    value: Any = None
    front_end: FrontEnd | None = None
    sample_rate_hz: int | None = None

    def __post_init__(self) -> None:
        owner = f"input {self.name!r}"
        _check(owner, self.name, self.shape, self.takes, self.dtype)
        if self.role not in get_args(Role):
            raise ContractError(f"{owner}: role {self.role!r} is not one of {', '.join(get_args(Role))}.")
        if self.role != "data":
            object.__setattr__(self, "time_axis", None)
        if self.role == "fixed":
            object.__setattr__(self, "batch_axis", None)
        if self.vocab_size is not None and not (_is_count(self.vocab_size) and element_type(self.dtype).is_integer):
            raise ContractError(f"{owner}: a vocabulary of {self.vocab_size} ids of dtype {self.dtype}.")
        if (self.role == "fixed") == (self.value is None):
            raise ContractError(f"{owner}: a fixed input has a value, and no other has one; got {self.value!r}.")
        if self.role == "fixed" and np.shape(self.value) != self.shape:
            raise ContractError(f"{owner}: a value of shape {np.shape(self.value)}, wanted {self.shape}.")
        if not _is_count(self.takes) or (self.takes > 1 and self.time_axis is None):
            raise ContractError(
                f"{owner}: takes must be 1 or more, and 1 where there is no time axis; got {self.takes!r}."
            )
        self._check_front_end(owner)
        self._check_sample_rate(owner)
        insert_axes(self.shape, {"batch": self.batch_axis, "time": self.time_axis})

    def _check_front_end(self, owner: str) -> None:
        if self.front_end is None:
            return
        if self.role != "data" or self.time_axis is None or not element_type(self.dtype).is_float:
            raise ContractError(f"{owner}: a front end needs real-valued data with a time axis.")
        if isinstance(self.front_end, Stft) and (self.takes != 1 or self.shape != self.front_end.shape):
            raise ContractError(
                f"{owner}: frames of stft have shape {self.front_end.shape}, one a step; "
                f"got shape {self.shape}, {self.takes} a step."
            )

    def _check_sample_rate(self, owner: str) -> None:
        if self.sample_rate_hz is None:
            return
        if self.role != "data" or not element_type(self.dtype).is_float or len(self.item_shape) > 1:
            raise ContractError(f"{owner}: only real-valued samples, or channels of them, have a sample rate.")
        if not _is_count(self.sample_rate_hz):
            raise ContractError(f"{owner}: sample_rate_hz must be 1 or more, got {self.sample_rate_hz!r}.")

    @property
    def is_tokens(self) -> bool:
        """Whether the input is token ids rather than other values."""
        return self.vocab_size is not None

    @property
    def context(self) -> int:
        """Items of the call before that framing repeats."""
        return self.front_end.context if isinstance(self.front_end, Framing) else 0

    @property
    def step_items(self) -> int:
        """Items that the host gives for one step: ``takes``, or samples for one frame."""
        return self.front_end.hop if isinstance(self.front_end, Stft) else self.takes

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item as the host gives it: that of the graph's, but a sample where the runtime transforms."""
        return () if isinstance(self.front_end, Stft) else self.shape


@dataclass(frozen=True)
class OutputSpec:
    """One tensor that a call computes: ``logits`` ``[B, S, V]``, or the model's own output.

    Attributes:
        name: Name of the graph output.
        shape: Shape of one item of one stream in the graph, such as ``(V,)``.
        dtype: Element type.
        gives: Items that one step produces.
        batch_axis: Where the graph's tensor has its batch axis; ``None`` where it has none.
        time_axis: The same for the time axis; without one, a step produces one item.
        back_end: What the runtime computes from the graph's items.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType = "float32"
    gives: int = 1
    batch_axis: int | None = 0
    time_axis: int | None = 1
    back_end: BackEnd | None = None

    def __post_init__(self) -> None:
        owner = f"output {self.name!r}"
        _check(owner, self.name, self.shape, self.gives, self.dtype)
        if not _is_count(self.gives) or (self.gives > 1 and self.time_axis is None):
            raise ContractError(
                f"{owner}: gives must be 1 or more, and 1 where there is no time axis; got {self.gives!r}."
            )
        if self.back_end is not None and (self.gives != 1 or self.shape != self.back_end.shape):
            wanted = self.back_end.shape
            raise ContractError(f"{owner}: overlap-add needs one frame {wanted} a step, got shape {self.shape}.")
        insert_axes(self.shape, {"batch": self.batch_axis, "time": self.time_axis})

    @property
    def step_items(self) -> int:
        """Items that the host gets for one step: ``gives``, or samples of one frame."""
        return self.back_end.hop if self.back_end else self.gives

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one item as the host gets it."""
        return () if self.back_end else self.shape

    @property
    def host_dtype(self) -> DType:
        """In what dtype the host gets it: numpy has no bfloat16, so that is widened."""
        return "float32" if self.dtype == "bfloat16" else self.dtype


@dataclass(frozen=True)
class StateSpec:
    """One tensor that is carried from call to call.

    Attributes:
        name: ``<layer>.<memory>.<tensor>``.
        shape: Shape for one stream; the graph's tensor also has a batch axis. ``None`` marks the one axis of a
            *growing* state (a full KV cache, the baseline): such a model has no fixed size.
        dtype: Element type.
        update: ``"replace"``: the graph outputs the whole new value. ``"append"``: the shape is ``(H, W, D)``, the
            graph outputs only the ``T`` new entries ``[B, H, T, D]``, and the runtime writes entry ``t`` into slot
            ``(position + t) mod W``.
        initial: Value of every element at position 0, or the bytes of a whole tensor (:func:`initial_bytes`).
        batch_axis: Where the graph's tensor has its batch axis; ``None`` where it has none.
        input: Name of the graph input; by default ``past.NAME``.
        output: Name of the graph output; by default ``present.NAME``, or ``append.NAME``.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: DType = "float32"
    update: UpdateRule = "replace"
    initial: float | bytes = 0.0
    batch_axis: int | None = 0
    input: str = ""
    output: str = ""

    def __post_init__(self) -> None:
        owner = f"state {self.name!r}"
        if not _KEY.fullmatch(self.name):
            raise ContractError(
                f"{owner}: a name is letters, digits and '_', in parts joined by '.'", hint="For instance '0.window.k'."
            )
        _check_dtype(owner, self.dtype)
        if self.update not in get_args(UpdateRule):
            raise ContractError(f"{owner}: update rule {self.update!r} is neither 'replace' nor 'append'.")
        if any(size is not None and not _is_count(size) for size in self.shape) or self.shape.count(None) > 1:
            raise ContractError(f"{owner}: shape {self.shape} must hold sizes of 1 or more.")
        if self.update == "append" and (len(self.shape) != 3 or None in self.shape or self.batch_axis != 0):
            raise ContractError(
                f"{owner}: an appended state is (H, W, D) with the batch axis first, got shape {self.shape} and batch "
                f"axis {self.batch_axis}."
            )
        if not isinstance(self.input, str) or not isinstance(self.output, str):
            raise ContractError(
                f"{owner}: its names in the graph must be text, got {self.input!r} and {self.output!r}."
            )
        _check_size(owner, self.nbytes)
        self._check_initial(owner)
        insert_axes(self.fixed_shape, {"batch": self.batch_axis})

    def _check_initial(self, owner: str) -> None:
        if isinstance(self.initial, bytes):
            if self.growing_axis is not None or len(self.initial) != self.nbytes:
                raise ContractError(f"{owner}: an initial tensor of {len(self.initial)} bytes, wanted {self.nbytes}.")
        elif not isinstance(self.initial, int | float):
            raise ContractError(f"{owner}: initial value {self.initial!r} is not a number.")
        elif element_type(self.dtype).is_integer:
            try:
                numpy_dtype(self.dtype).type(self.initial)
            except (OverflowError, ValueError) as error:
                raise ContractError(f"{owner}: initial value {self.initial!r} is no {self.dtype}.") from error

    @property
    def input_name(self) -> str:
        """Name of the graph input that takes the state."""
        return self.input or f"past.{self.name}"

    @property
    def output_name(self) -> str:
        """Name of the graph output that gives the new state, or its new entries."""
        return self.output or f"{'append' if self.update == 'append' else 'present'}.{self.name}"

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
        return math.prod(self.fixed_shape) * element_type(self.dtype).nbytes

    def nbytes_at(self, position: int) -> int:
        """Bytes of the state of one stream after ``position`` steps."""
        if self.growing_axis is None:
            return self.nbytes
        return math.prod(size or position for size in self.shape) * element_type(self.dtype).nbytes

    @property
    def starts_finite(self) -> bool:
        """Whether every element is finite at position 0, so that a guard may ask for it ever after."""
        value = initial_state(self, 1)
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def initial_bytes(value: Any, dtype: str) -> bytes:
    """A whole tensor ``[*shape]`` as :attr:`StateSpec.initial` holds it: little-endian, in the state's dtype."""
    array = encode_bfloat16(value) if dtype == "bfloat16" else np.asarray(value, numpy_dtype(dtype))
    return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def initial_state(state: StateSpec, batch: int) -> np.ndarray[Any, Any]:
    """The value of ``state`` at position 0, ``[B, *shape]``; bfloat16 as its bits in uint16."""
    shape, dtype = (batch, *state.fixed_shape), numpy_dtype(state.dtype)
    if isinstance(state.initial, bytes):
        return np.broadcast_to(np.frombuffer(state.initial, dtype).reshape(state.fixed_shape), shape).copy()
    value = encode_bfloat16(np.float32(state.initial)) if state.dtype == "bfloat16" else state.initial
    return np.full(shape, value, dtype=dtype)
