"""Where every tensor of a stream lies in its arena: offsets, derived from the contract.

::

    state   rings          [N, B, H, W, D] for each group of N appended states of equal (H, W, D, dtype)
            replaced       twice: one copy is read while the other is written, and they swap after the step
    work    step inputs and positions [B], side by side so that a device gets them in one copy
            output indices [1];  held and fixed inputs;  step outputs
            entries        [N, B, H, 1, D] of a step, then [N, B, H, T, D] of a chunk of T ≤ L steps
            chunk inputs   of L steps, and output indices [L]

The state lies at the start, so that a fork is one copy. The rings of a group lie one behind the other, as do its
entries, so that writing one step's entries into every ring of the group is one strided copy. Growing states lie outside
(:mod:`edgemem.runtimes.growing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgemem.contract import Contract, Sizes, StateSpec, TensorSpec
from edgemem.dtypes import element_type
from edgemem.runtimes.memory import Place


@dataclass(frozen=True)
class Calls:
    """The calls that a stream makes: 1 to ``max_time`` steps."""

    max_time: int
    min_time: int = 1


@dataclass(frozen=True)
class RingGroup:
    """Appended states of equal shape and dtype.

    Attributes:
        names: The states, in the order in which they lie.
        shape: ``(H, W, D)``.
        dtype: Element type, by the contract's name.
        rings: Offset of the first ring.
        ring_stride: Bytes from one ring to the next.
        step_entries: Offset of the entries of a step.
        chunk_entries: Offset of the entries of a chunk.
    """

    names: tuple[str, ...]
    shape: tuple[int, int, int]
    dtype: str
    rings: int
    ring_stride: int
    step_entries: int
    chunk_entries: int

    def entries_at(self, time: int) -> int:
        """Offset of the entries of a call of ``time`` steps."""
        return self.step_entries if time == 1 else self.chunk_entries

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry of one head."""
        return self.shape[2] * element_type(self.dtype).nbytes


class Layout:
    """Offsets of every tensor of a stream whose states have a fixed size.

    Args:
        contract: The contract.
        batch: Streams that advance together, ``B``.
        max_time: Most steps of one call, ``L``.
        alignment: Bytes to which every tensor is aligned.
    """

    def __init__(self, contract: Contract, batch: int, max_time: int, alignment: int) -> None:
        self.batch = batch
        self.max_time = max_time
        self._alignment = alignment
        self._end = 0
        self.inputs = contract.inputs(Calls(max_time))
        self.outputs = contract.outputs(Calls(max_time))
        groups = _grouped(contract)
        self._place_states(contract, groups)
        self._place_work(groups)

    def _place_states(self, contract: Contract, groups: dict[tuple[tuple[int, ...], str], list[str]]) -> None:
        specs = {tensor.spec.name: tensor for tensor in self.inputs if isinstance(tensor.spec, StateSpec)}
        self.rings: dict[str, Place] = {}
        for names in groups.values():
            self.rings.update({name: self._of(specs[name], Sizes(self.batch)) for name in names})
        replaced = [state for state in contract if state.update == "replace" and state.growing_axis is None]
        first = {state.name: self._of(specs[state.name], Sizes(self.batch)) for state in replaced}
        first_end = self._end
        second = {state.name: self._of(specs[state.name], Sizes(self.batch)) for state in replaced}
        self.replaced = (first, second)
        self.state_bytes = self._end
        self.live_bytes = (first_end, self._end)
        """Bytes from the start that hold the whole state, where the one or the other copy is the current one."""

    def _place_work(self, groups: dict[tuple[tuple[int, ...], str], list[str]]) -> None:
        step, chunk = Sizes(self.batch), Sizes(self.batch, self.max_time, self.max_time)
        data = [tensor for tensor in self.inputs if tensor.role == "data"]
        self.step_inputs = {tensor.name: self._of(tensor, step) for tensor in data}
        self.positions = self._place((self.batch,), "int64")
        self.step_indices = self._place((1,), "int64", None)
        given = [tensor for tensor in self.inputs if tensor.role in ("held", "fixed")]
        self.given = {tensor.name: self._of(tensor, step) for tensor in given}
        computed = [tensor for tensor in self.outputs if tensor.role == "output"]
        self.step_outputs = {tensor.name: self._of(tensor, step) for tensor in computed}
        step_entries = [self._entries(names, *key, 1) for key, names in groups.items()]
        self.chunk_inputs = {tensor.name: self._of(tensor, chunk) for tensor in data}
        self.chunk_indices = self._place((self.max_time,), "int64", None)
        chunk_time = self.max_time if self.max_time > 1 else 0
        chunk_entries = [self._entries(names, *key, chunk_time) for key, names in groups.items()]
        self.nbytes = self._end
        self.groups = tuple(
            self._group(key, names, *entries)
            for (key, names), *entries in zip(groups.items(), step_entries, chunk_entries, strict=True)
        )

    def _group(self, key: tuple[tuple[int, ...], str], names: list[str], step: int, chunk: int) -> RingGroup:
        (heads, window, width), dtype = key
        first = self.rings[names[0]]
        return RingGroup(
            tuple(names), (heads, window, width), dtype, first.offset, self._align(first.nbytes), step, chunk
        )

    def _align(self, offset: int) -> int:
        return -(-offset // self._alignment) * self._alignment

    def _of(self, tensor: TensorSpec, sizes: Sizes) -> Place:
        return self._place(tensor.shape(sizes), tensor.dtype, tensor.batch_axis)

    def _place(self, shape: tuple[int, ...], dtype: str, batch_axis: int | None = 0) -> Place:
        place = Place(self._end, shape, dtype, batch_axis)
        self._end = self._align(place.end)
        return place

    def _entries(self, names: Sequence[str], shape: tuple[int, ...], dtype: str, time: int) -> int:
        start = self._end
        for _ in names:
            self._place((self.batch, shape[0], time, shape[2]), dtype)
        return start

    def chunk_input(self, tensor: TensorSpec, time: int) -> Place:
        """Where the data of a chunk of ``time`` steps lies: at the start of that of the longest chunk."""
        offset = self.chunk_inputs[tensor.name].offset
        return Place(offset, tensor.shape(Sizes(self.batch, time)), tensor.dtype, tensor.batch_axis)

    def entry_stride(self, group: RingGroup, time: int) -> int:
        """Bytes from the entries of one state of a group to those of the next, in a call of ``time`` steps."""
        return self._align(self.batch * group.shape[0] * time * group.entry_bytes)

    def entries(self, time: int) -> dict[str, Place]:
        """Where a call of ``time`` steps puts its new entries ``[B, H, time, D]``."""
        return {
            name: Place(
                group.entries_at(time) + index * self.entry_stride(group, time),
                (self.batch, group.shape[0], time, group.shape[2]),
                group.dtype,
            )
            for group in self.groups
            for index, name in enumerate(group.names)
        }

    def wide_outputs(self, time: int, wanted: int) -> tuple[dict[str, Place], int]:
        """Where the outputs of several steps lie in a block of their own, and the bytes of that block."""
        places: dict[str, Place] = {}
        end = 0
        for name, tensor in self._computed.items():
            shape = tensor.shape(Sizes(self.batch, time, wanted))
            places[name] = Place(end, shape, tensor.dtype, tensor.batch_axis)
            end = self._align(places[name].end)
        return places, end

    @property
    def _computed(self) -> dict[str, TensorSpec]:
        return {tensor.name: tensor for tensor in self.outputs if tensor.role == "output"}


def _grouped(contract: Contract) -> dict[tuple[tuple[int, ...], str], list[str]]:
    """Names of the appended states, by shape and dtype."""
    groups: dict[tuple[tuple[int, ...], str], list[str]] = {}
    for state in contract:
        if state.update == "append":
            groups.setdefault((state.fixed_shape, state.dtype), []).append(state.name)
    return groups
