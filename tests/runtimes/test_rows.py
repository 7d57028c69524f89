"""After a step of some rows only: their entries are in their rings, and the other rows are as they were."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgemem.contract import Contract
from edgemem.runtimes import native
from edgemem.runtimes.arena import Arena
from edgemem.runtimes.cuda import CudaMemory
from edgemem.runtimes.memory import Array, HostMemory, Memory, Tensor
from edgemem.runtimes.rings import write_ring
from tests.runtimes.stand_in_cuda import StandIn
from tests.runtimes.test_arena import contracts


@pytest.fixture(params=["native", "numpy", "device"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Memory:
    if request.param == "device":
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", StandIn())
        return CudaMemory()
    if request.param == "numpy":
        monkeypatch.setattr(native, "row_calls", lambda: None)
    elif native.row_calls() is None:
        pytest.skip(native.why())
    return HostMemory()


def content(arena: Arena, names: list[str], side: int) -> dict[str, Array]:
    """States, batch axis first, while ``side`` is the current one."""
    return {
        state.name: Tensor(arena.block, place).read_rows()
        for state in arena._contract
        if state.name in names
        for place in [(arena.layout.rings if state.update == "append" else arena.layout.replaced[side])[state.name]]
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), contract=contracts())
def test_a_step_of_some_rows(memory: Memory, data: st.DataObject, contract: Contract) -> None:
    batch = data.draw(st.integers(1, 6))
    arena = Arena(memory, contract, batch, contract.max_chunk)
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    arena.block.upload(0, rng.integers(0, 120, arena.layout.state_bytes).astype(np.uint8))
    rows = np.array(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, unique=True)), np.int64)
    given_rows: Array | slice = rows
    if len(rows) == 1 or (np.diff(rows) == 1).all():
        given_rows = data.draw(st.sampled_from([rows, slice(int(rows[0]), int(rows[-1]) + 1)]))
    arena.positions[...] = rng.integers(0, 1000, batch)
    before = arena.positions.copy()
    rings = [state.name for state in contract if state.update == "append"]
    kept = [state.name for state in contract if state.update == "replace"]
    wanted = content(arena, rings, 0)
    for name, entries in arena.layout.entries(1).items():
        new = Tensor(arena.block, entries).read()
        for row in rows.tolist():
            write_ring(wanted[name][row : row + 1], new[row : row + 1], before[row : row + 1])
    old, made = content(arena, kept, 0), content(arena, kept, 1)
    others = data.draw(st.sampled_from([None, np.setdiff1d(np.arange(batch), rows)]))

    arena.commit_rows(given_rows, others)

    assert arena.side == (0 if others is None else 1)
    np.testing.assert_equal(content(arena, rings, arena.side), wanted)
    for name, found in content(arena, kept, arena.side).items():
        for row in range(batch):
            np.testing.assert_array_equal(found[row], (made if row in rows else old)[name][row])
    np.testing.assert_array_equal(arena.positions, before + np.isin(np.arange(batch), rows))
