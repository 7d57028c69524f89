"""What carries one stream: its engine, its memory, and the moves from one position to the next.

Computing leaves the state alone; :meth:`Lane.commit` makes what was computed the state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract, StateSpec
from edgemem.errors import EdgememError
from edgemem.overrides import override
from edgemem.runtimes.arena import Arena
from edgemem.runtimes.buffers import HELD, Buffers
from edgemem.runtimes.engine import Call, Engine
from edgemem.runtimes.memory import Array


class Lane:
    """One stream of ``B`` rows in an engine.

    Args:
        contract: The contract.
        engine: The engine of this stream.
        batch: ``B``.
        max_time: Most steps of one call.

    Attributes:
        arena: Where states, inputs and outputs lie.
        buffers: What else the stream keeps.
        positions: int64 ``[B]``.
        common: The position of every row; ``None`` where rows differ.
        calls: What runs a step that reads each copy of the replaced states; empty where a state grows.
        ended: Whether the stream has ended.
    """

    def __init__(self, contract: Contract, engine: Engine, batch: int, max_time: int) -> None:
        self.engine = engine
        self.arena = arena = Arena(engine.memory, contract, batch, max_time)
        self.buffers = Buffers(contract, batch)
        self.positions: NDArray[np.int64] = arena.positions
        self.common: int | None = 0
        self.ended = False
        self._contract = contract
        self._batch = batch
        self._max_time = max_time
        self._spare: Arena | None = None
        self._chunk_calls: dict[tuple[int, int], tuple[object, Call]] = {}
        self.calls: tuple[Call, ...] = () if arena.growing else self.step_calls()

    # Calls.

    def step_calls(self) -> tuple[Call, Call]:
        """What runs a step in each direction; on a device it also brings the data there."""
        arena = self.arena
        first, second = (self.engine.bind(1, arena.inputs(1, 1, side), arena.outputs(1, 1, side)) for side in (0, 1))
        if arena.memory.on_host:
            return self.engine.ready((first, second))
        send = arena.send_step

        def sending(call: Call) -> Call:
            def run() -> None:
                send()
                call()

            return run

        return self.engine.ready((sending(first), sending(second)))

    def _chunk_call(self, time: int, wanted: int) -> Call:
        """What runs a chunk; that of the longest is kept."""
        arena = self.arena
        key, block = (wanted, arena.side), arena.wide(time, wanted)
        known, call = self._chunk_calls.get(key, (None, None))
        if call is not None and known is block and time == self._max_time:
            return call
        call = self.engine.bind(time, arena.inputs(time, wanted, arena.side), arena.outputs(time, wanted, arena.side))
        if time == self._max_time and not arena.growing:
            self._chunk_calls[key] = (block, call)
        return call

    def run(self, call: Call) -> None:
        """Run a call; what the engine raises is put into words, with the position."""
        try:
            call()
        except EdgememError:
            raise
        except Exception as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> EdgememError:
        """The error for a call that failed."""
        if isinstance(error, EdgememError):
            return error
        return EdgememError(f"{self.engine.title} failed at position {int(self.positions[0])}: {error}")

    # Computing and committing.

    def compute_step(self) -> None:
        """Compute one step from the arena's step inputs; the outputs are in its step outputs."""
        arena = self.arena
        if arena.growing:
            arena.reserve(1)
            arena.send_step()
            self.run(self.engine.bind(1, arena.inputs(1, 1, arena.side), arena.outputs(1, 1, arena.side)))
        else:
            self.run(self.calls[arena.side])
        arena.fetch_step()

    def compute(self, time: int, data: Mapping[str, Array], every: bool) -> dict[str, Array]:
        """Compute ``time`` steps of ``data`` ``[B, N, ...]``: outputs by name ``[B, M, ...]``, bfloat16 as bits."""
        arena = self.arena
        if time == 1:
            for name, array in data.items():
                arena.step_inputs[name][...] = array
            self.compute_step()
            return dict(arena.step_outputs)
        arena.reserve(time)
        indices = None
        wanted = time
        if self._contract.output_indices:
            indices = np.arange(time) if every else np.array([time - 1])
            wanted = len(indices)
        arena.send_chunk(time, data, indices)
        self.run(self._chunk_call(time, wanted))
        return arena.fetch(time, wanted, last=not every)

    def new_states(self, time: int) -> Iterator[tuple[StateSpec, Array]]:
        """What the last computation of ``time`` steps makes of each state: the new value, or the new entries."""
        for state in self._contract:
            yield state, self.arena.new(state, time)

    def commit(self, time: int) -> None:
        """Make what the last computation of ``time`` steps gave the state."""
        self.arena.commit(time, self.common)
        if self.common is not None:
            self.common += time
            self.positions.fill(self.common)
        else:
            self.positions += time

    @contextlib.contextmanager
    def keeping(self, rows: Sequence[int]) -> Iterator[None]:
        """Leave the state and the positions of those rows as they are, whatever the block commits."""
        if self._spare is None:
            self._spare = Arena(self.arena.memory, self._contract, self._batch, 1)
        self._spare.copy_rows(self.arena, rows)
        yield
        for kept, row in enumerate(rows):
            self.arena.copy_rows(self._spare, [kept], row)
        self.engine.finish()
        self.changed()

    # The state.

    def install(self, state: Mapping[str, Array], positions: NDArray[np.int64]) -> None:
        """Replace states and positions."""
        self.positions[...] = positions
        self.arena.write_state(state, int(positions[0]))
        self.changed()

    def load_buffers(self, arrays: Mapping[str, Array]) -> None:
        """Replace what the stream keeps besides its states."""
        self.buffers.load(arrays)
        self.write_held()
        self.changed()

    def end(self) -> None:
        """Mark every row as ended."""
        self.buffers.arrays["ended"] = np.ones(self._batch, bool)
        self.changed()

    def reset(self, rows: Sequence[int] | None) -> None:
        """Put all rows, or those, back to position 0 and the initial state."""
        self.arena.reset(rows)
        self.buffers.reset(rows)
        self.positions[slice(None) if rows is None else list(rows)] = 0
        self.changed()

    def copy(self, sources: Sequence[tuple[Lane, Sequence[int] | None]]) -> None:
        """Take over states, positions and buffers: those rows of each lane, one lane behind the other."""
        for source, _ in sources:
            source.engine.finish()  # its work is issued elsewhere, and must be done before it is copied
        whole = len(sources) == 1 and sources[0][1] is None
        if whole:
            self.arena.copy_state(sources[0][0].arena)
        elif self.arena.growing:
            self._copy_growing(sources)
        first = 0
        for source, chosen in sources:
            rows = range(source._batch) if chosen is None else chosen
            if not whole and not self.arena.growing:
                self.arena.copy_rows(source.arena, rows, first)
            self.buffers.copy_rows(source.buffers, rows, first)
            first += len(rows)
        self.engine.finish()
        self.write_held()
        self.changed()

    def _copy_growing(self, sources: Sequence[tuple[Lane, Sequence[int] | None]]) -> None:
        """Copy by way of the host, for states that grow."""
        chosen = [(lane, slice(None) if rows is None else list(rows)) for lane, rows in sources]
        states = [(lane.arena.read_state(), rows) for lane, rows in chosen]
        joined = {name: np.concatenate([state[name][rows] for state, rows in states]) for name in states[0][0]}
        self.install(joined, np.concatenate([lane.positions[rows] for lane, rows in chosen]))

    def write_held(self) -> None:
        """Write the inputs that are given once to where the graph reads them."""
        for spec in self._contract.held:
            if (value := self.buffers.arrays.get(HELD + spec.name)) is not None:
                self.arena.hold(spec, value)

    def changed(self) -> None:
        """Note that positions or buffers were replaced."""
        first = int(self.positions[0])
        self.common = first if bool((self.positions == first).all()) else None
        ended = self.buffers.arrays.get("ended")
        self.ended = ended is not None and bool(ended.any())

    def close(self) -> None:
        """Let go of the model, so that every later call raises."""
        with contextlib.suppress(EdgememError):  # a device that failed has nothing left to wait for
            self.engine.finish()
        self.calls = (_closed, _closed)
        self._chunk_calls.clear()
        self.engine = _ClosedEngine(self.engine)


def _closed() -> None:
    raise EdgememError("the session is closed.", hint="Open the bundle again.")


class _ClosedEngine(Engine):
    """What is left of an engine when its session is closed: every call raises."""

    def __init__(self, engine: Engine) -> None:
        self.memory, self.title, self.runtime = engine.memory, engine.title, engine.runtime  # type: ignore[misc]

    @override
    def bind(self, time: int, inputs: Any, outputs: Any) -> Call:
        return _closed
