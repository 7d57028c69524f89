"""The arena: one allocation that holds everything a stream touches in a step, and the moves within it.

What lies where is in :mod:`edgemem.runtimes.layout`. States that grow lie outside (:mod:`edgemem.runtimes.growing`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract, InputSpec, StateSpec, TensorSpec, initial_state
from edgemem.dtypes import numpy_dtype
from edgemem.runtimes.growing import GrowingState
from edgemem.runtimes.layout import Layout
from edgemem.runtimes.memory import Array, Block, Memory, Place, Tensor
from edgemem.runtimes.rings import Rings
from edgemem.runtimes.sides import Sides


class Arena:
    """The memory of one stream.

    Attributes:
        layout: Where things lie.
        block: The allocation.
        side: Which copy of the replaced states, 0 or 1, is the state; a step writes the other.
        step_inputs: Data of a step by name, ``[B, takes, ...]``; the host writes them here.
        positions: int64 ``[B]``; the host keeps every stream's position here.
        step_outputs: Outputs of a step by name, ``[B, gives, ...]``, read-only; bfloat16 as bits.
        growing: The growing states by name.
        append_step: For each group of rings, the copy of a step's entries into a slot of all its rings, and ``W``.
    """

    def __init__(self, memory: Memory, contract: Contract, batch: int, max_time: int) -> None:
        self.layout = layout = Layout(contract, batch, max_time, memory.alignment)
        self.memory = memory
        self.block: Block = memory.allocate(layout.nbytes)
        self.side = 0
        self._contract = contract
        self._on_host = memory.on_host
        self._map_step()
        start = next(iter(layout.chunk_inputs.values())).offset
        self._chunk_start = start
        self._chunk = self.block.host_buffer(start, layout.chunk_indices.end - start)
        self.block.upload(layout.step_indices.offset, np.zeros(1, np.int64))
        self._wide: Block | None = None
        self._sides = Sides(self.block, layout, memory.on_host)
        self._rings = Rings(self.block, layout, memory.on_host)
        self.append_step = self._rings.append_step
        grown = [t for t in layout.inputs if isinstance(t.spec, StateSpec) and t.spec.growing_axis is not None]
        self.growing = {t.spec.name: GrowingState(memory, t, batch) for t in grown if t.spec is not None}
        self._write_fixed()

    def _map_step(self) -> None:
        """Views of what the host reads and writes in every step."""
        layout = self.layout
        start = next(iter(layout.step_inputs.values())).offset
        self._inputs = self.block.host_buffer(start, layout.positions.end - start)
        self.step_inputs = {
            tensor.name: tensor.leading(layout.step_inputs[tensor.name].view(self._inputs, start))
            for tensor in layout.inputs
            if tensor.role == "data"
        }
        self.positions: Array = layout.positions.view(self._inputs, start)
        self._inputs[...] = 0  # so that an engine may be tried before the first step
        places = layout.step_outputs
        start, end = next(iter(places.values())).offset, list(places.values())[-1].end
        self._output_start = start
        self._output = self.block.host_buffer(start, end - start)
        self.step_outputs = {
            tensor.name: tensor.leading(places[tensor.name].view(self._output, start))
            for tensor in layout.outputs
            if tensor.role == "output"
        }
        for view in self.step_outputs.values():
            view.flags.writeable = False

    def _write_fixed(self) -> None:
        for spec in self._contract.input_specs:
            if spec.role == "fixed":
                self.block.upload(self.layout.given[spec.name].offset, np.asarray(spec.value, numpy_dtype(spec.dtype)))

    def hold(self, spec: InputSpec, value: Array) -> None:
        """Write an input that is given once, ``[B, *shape]``."""
        Tensor(self.block, self.layout.given[spec.name]).write_rows(value)

    # What a call reads and writes.

    @property
    def length(self) -> int:
        """Entries of the growing states: the position that all rows share."""
        return int(self.positions[0])

    def inputs(self, time: int, wanted: int, side: int) -> dict[str, Tensor]:
        """The inputs of a call of ``time`` steps that computes the outputs of ``wanted`` and reads ``side``."""
        layout = self.layout
        found = {}
        for tensor in layout.inputs:
            if isinstance(tensor.spec, StateSpec):
                found[tensor.name] = self.past(tensor.spec, side)
            else:
                found[tensor.name] = Tensor(self.block, self._input_place(tensor, time, wanted))
        return found

    def _input_place(self, tensor: TensorSpec, time: int, wanted: int) -> Place:
        layout = self.layout
        if tensor.role == "position":
            return layout.positions
        if tensor.role == "output_indices":
            chunk = layout.chunk_indices
            return layout.step_indices if time == 1 else Place(chunk.offset, (wanted,), chunk.dtype, None)
        if tensor.role == "data":
            return layout.step_inputs[tensor.name] if time == 1 else layout.chunk_input(tensor, time)
        return layout.given[tensor.name]

    def outputs(self, time: int, wanted: int, side: int) -> dict[str, Tensor]:
        """The outputs of that call: states, entries, and what the model computes."""
        layout = self.layout
        entries = layout.entries(time)
        found = {name: Tensor(self.wide(time, wanted), place) for name, place in self.wanted(time, wanted).items()}
        for state in self._contract:
            if state.growing_axis is not None:
                found[state.output_name] = self.growing[state.name].at(1 - side, self.length + time)
            elif state.update == "append":
                found[state.output_name] = Tensor(self.block, entries[state.name])
            else:
                found[state.output_name] = Tensor(self.block, layout.replaced[1 - side][state.name])
        return found

    def is_wide(self, time: int, wanted: int) -> bool:
        """Whether the outputs of a call lie in a block of their own, since they may take more than the state."""
        return time > 1 and (wanted > 1 or not self._contract.output_indices)

    def wanted(self, time: int, wanted: int) -> dict[str, Place]:
        """Where the outputs of a call lie in :meth:`wide`."""
        return self.layout.wide_outputs(time, wanted)[0] if self.is_wide(time, wanted) else self.layout.step_outputs

    def wide(self, time: int, wanted: int) -> Block:
        """The block of a call's outputs; one of several steps is kept for the next call."""
        if not self.is_wide(time, wanted):
            return self.block
        nbytes = self.layout.wide_outputs(time, wanted)[1]
        if self._wide is None or self._wide.nbytes < nbytes:
            self._wide = None  # freed first: the two need not fit side by side
            self._wide = self.memory.allocate(nbytes)
        return self._wide

    def past(self, state: StateSpec, side: int) -> Tensor:
        """A state while ``side`` is the current one."""
        if state.growing_axis is not None:
            return self.growing[state.name].at(side, self.length)
        places = self.layout.rings if state.update == "append" else self.layout.replaced[side]
        return Tensor(self.block, places[state.name])

    def reserve(self, time: int) -> None:
        """Make room for what a call of ``time`` steps appends to growing states."""
        for growing in self.growing.values():
            growing.reserve(self.length + time, self.side, self.length)

    # Data to the engine, outputs to the host.

    def send_step(self) -> None:
        """Bring the data and the positions of a step to the device; host memory needs nothing."""
        if not self._on_host:
            self.block.send(next(iter(self.layout.step_inputs.values())).offset, self._inputs)

    def fetch_step(self) -> None:
        """Bring the outputs of a step to the host; host memory needs nothing."""
        if not self._on_host:
            self.block.download(self._output_start, self._output)

    def send_chunk(self, time: int, data: Mapping[str, Array], indices: Array | None) -> None:
        """Write the data ``[B, T, ...]`` by name, the positions, and the output indices ``[S]`` of a chunk.

        A device has read them when the chunk's outputs are on the host; until then they must not be written again.
        """
        for tensor in self.layout.inputs:
            if tensor.role == "data":
                place = self.layout.chunk_input(tensor, time)
                tensor.leading(place.view(self._chunk, self._chunk_start))[...] = data[tensor.name]
                self._send(place)
        if indices is not None:
            place = Place(self.layout.chunk_indices.offset, indices.shape, "int64", None)
            place.view(self._chunk, self._chunk_start)[...] = indices
            self._send(place)
        self.send_step()

    def _send(self, place: Place) -> None:
        if not self._on_host:
            start = place.offset - self._chunk_start
            self.block.send(place.offset, self._chunk[start : start + place.nbytes])

    def fetch(self, time: int, wanted: int, last: bool) -> dict[str, Array]:
        """The outputs of a chunk by name, ``[B, N, ...]``; ``last``: those of its last step alone."""
        if not self.is_wide(time, wanted):
            self.fetch_step()
            return {name: view.copy() for name, view in self.step_outputs.items()}
        block, places, found = self.wide(time, wanted), self.wanted(time, wanted), {}
        for tensor in self.layout.outputs:
            if tensor.role == "output":
                found[tensor.name] = _fetched(Tensor(block, places[tensor.name]), tensor, last)
        return found

    # The state.

    def commit(self, time: int, common: int | None) -> None:
        """Make what a call of ``time`` steps computed the state: entries into their rings, replaced states swapped.

        Args:
            time: Steps of the call.
            common: Position of every row before the call, or ``None`` where rows differ.
        """
        self._rings.append(time, self.positions.tolist() if common is None else [common] * self.layout.batch, common)
        self.side = 1 - self.side

    def commit_rows(self, rows: Array | slice, others: Array | None) -> None:
        """Make what a step computed the state of some rows, and add 1 to their positions.

        Args:
            rows: Those rows, int64 ``[K]``, or a slice.
            others: The other rows whose state must stay as it is, int64 ``[M]``; ``None`` where they are more.
        """
        self._rings.append_rows(rows, self.positions, 1)
        if others is None:
            self._sides.copy(self.side, rows)
            return
        self.side = 1 - self.side  # the new copy becomes the state, and takes over the rows that stay
        if len(others):
            self._sides.copy(self.side, others)

    def new(self, state: StateSpec, time: int) -> Array:
        """What the last call of ``time`` steps makes of a state, batch axis first: all of it, or its new entries."""
        if state.update == "append":
            return Tensor(self.block, self.layout.entries(time)[state.name]).read()
        if state.growing_axis is not None:
            return self.growing[state.name].at(1 - self.side, self.length + time).read_rows()
        return Tensor(self.block, self.layout.replaced[1 - self.side][state.name]).read_rows()

    def reset(self, rows: Sequence[int] | None = None) -> None:
        """Give every state, or those rows of it, its initial value; positions are the caller's."""
        if rows is None:
            self.write_state({state.name: initial_state(state, self.layout.batch) for state in self._fixed}, 0)
            return
        for state in self._fixed:
            place, value = self.past(state, self.side).place, initial_state(state, 1).reshape(-1).view(np.uint8)
            for row in rows:
                done = 0
                for offset, nbytes in place.row_parts(row):
                    self.block.upload(offset, value[done : done + nbytes])
                    done += nbytes

    @property
    def _fixed(self) -> list[StateSpec]:
        return [state for state in self._contract if state.growing_axis is None]

    def read_state(self) -> dict[str, Array]:
        """Every state by name, ``[B, *shape]``: views of arrays of the caller's. One copy for those of fixed size."""
        buffer: Array = np.empty(self.layout.live_bytes[self.side], np.uint8)
        self.block.download(0, buffer)
        found = {state.name: self.past(state, self.side).place.rows(buffer) for state in self._fixed}
        found |= {name: growing.at(self.side, self.length).read_rows() for name, growing in self.growing.items()}
        return {state.name: found[state.name] for state in self._contract}

    def read_rows(self, rows: NDArray[np.int64]) -> dict[str, Array]:
        """The states of fixed size of those ``K`` rows by name, ``[K, *shape]``: arrays of the caller's."""
        nbytes = self.layout.live_bytes[self.side]
        if self.memory.on_host:
            buffer: Array = self.block.host_buffer(0, nbytes)
        else:
            buffer = np.empty(nbytes, np.uint8)
            self.block.download(0, buffer)
        return {state.name: self.past(state, self.side).place.rows(buffer)[rows] for state in self._fixed}

    def write_state(self, values: Mapping[str, Array], length: int = 0) -> None:
        """Replace every state, ``[B, *shape]`` by name, growing ones at ``length`` entries. One copy for the others."""
        self.side = 0  # whose states follow the rings immediately
        buffer: Array = np.zeros(self.layout.live_bytes[0], np.uint8)
        for state in self._fixed:
            self.past(state, 0).place.rows(buffer)[...] = values[state.name]
        self.block.upload(0, buffer)
        for name, growing in self.growing.items():
            growing.reserve(length, 0, 0)
            if length:
                growing.at(0, length).write_rows(values[name])

    def copy_state(self, source: Arena) -> None:
        """Take over state and positions of an arena of the same layout; the states of fixed size in one copy."""
        self.block.copy_from(source.block, self.layout.state_bytes)
        self.side = source.side
        self.positions[...] = source.positions
        for name, growing in self.growing.items():
            growing.copy_from(source.growing[name], self.side, self.length)

    def copy_rows(self, source: Arena, rows: Sequence[int], first: int = 0) -> None:
        """Take over those rows of another arena's state, in that order, into the rows from ``first`` on."""
        for state in self._fixed:
            to, of = self.past(state, self.side).place, source.past(state, source.side).place
            for row, chosen in enumerate(rows, start=first):
                for (dst, nbytes), (src, _) in zip(to.row_parts(row), of.row_parts(chosen), strict=True):
                    self.block.copy_from(source.block, nbytes, dst, src)
        self.positions[first : first + len(rows)] = source.positions[list(rows)]


def _fetched(tensor: Tensor, spec: TensorSpec, last: bool) -> Array:
    """An output on the host, ``[B, N, ...]``, or its last step ``[B, gives, ...]``."""
    place = tensor.place
    if not last or spec.batch_axis != 0 or spec.time_axis != 1:
        whole = spec.leading(tensor.read())
        return whole[:, -_gives(spec) :] if last else whole
    output: Array = np.empty((place.shape[0], _gives(spec), *place.shape[2:]), numpy_dtype(place.dtype))
    for row, into in enumerate(output):
        end = place.offset + (row + 1) * (place.nbytes // place.shape[0])
        tensor.block.download(end - into.nbytes, into)
    return output


def _gives(spec: TensorSpec) -> int:
    return getattr(spec.spec, "gives", 1)
