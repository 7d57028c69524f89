"""The stand-ins find mistakes: a runtime that is wrong in one place fails what the right one passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgemem.bundle import Bundle
from edgemem.errors import EdgememError
from edgemem.runtimes.arena import Arena
from edgemem.runtimes.cuda import CudaBlock
from edgemem.runtimes.lane import Lane
from edgemem.runtimes.memory import Box
from edgemem.runtimes.rings import Rings
from edgemem.runtimes.session import Session
from edgemem.runtimes.trt.session import StreamEngine, TrtSession
from tests.runtimes import tiny
from tests.runtimes.trt.machine import Machine, machine

Patch = pytest.MonkeyPatch
Break = Callable[[Patch], None]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny.save_bundle(tmp_path_factory.mktemp("mistakes") / "tokens", tiny.TOKENS, tiny.tokens_model())


@pytest.fixture
def device() -> Iterator[Machine]:
    with machine() as here:
        yield here


def check(values: Any, histories: list[list[int]]) -> None:
    """Hold outputs ``[B, D]`` to the formula's of the last token of each history."""
    wanted = np.stack([tiny.tokens_outputs(history)[-1] for history in histories])
    np.testing.assert_allclose(values, wanted, atol=2e-5, rtol=1e-5)


def use(session: TrtSession) -> None:
    """Steps past the wrap of both rings, chunks, rows at different positions, a fork and a snapshot."""
    stream, rows = session.stream(2), [[], []]

    def step(a: int, b: int) -> None:
        for row, token in zip(rows, (a, b), strict=True):
            row.append(token)
        check(stream.step([a, b]), rows)

    for i in range(2 * tiny.LONG + 1):
        step((3 * i) % tiny.VOCAB, (5 * i + 1) % tiny.VOCAB)
    stream.reset([1])
    rows[1] = []
    for i in range(3):
        step(i, i + 1)
    chunk = [[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1]]
    rows[0] += chunk[0]
    rows[1] += chunk[1]
    check(stream.feed(chunk), rows)
    step(8, 9)
    fork = stream.fork()
    check(fork.step([1, 2]), [[*rows[0], 1], [*rows[1], 2]])
    step(3, 4)
    taken = stream.snapshot()
    step(5, 6)
    other = session.stream(2)
    other.restore(taken)
    check(other.step([5, 6]), rows)
    assert session.engine.cuda_graphs, "the steps ran without graphs"


def wrapped(owner: type, name: str, change: Callable[..., Any]) -> Break:
    """Replace a method: ``change`` gets the method that it replaces, then its arguments."""

    def apply(patch: Patch) -> None:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: change(original, *a, **k))

    return apply


def geometry(field: str, factor: int) -> Break:
    """One of the numbers that place entries in rings, times ``factor``."""

    def change(original: Any, block: CudaBlock, dst: int, src: int, box: Box, step: int, count: int) -> Any:
        return original(block, dst, src, replace(box, **{field: factor * getattr(box, field)}), step, count)

    return wrapped(CudaBlock, "copier", change)


def stands_still(original: Any, arena: Arena, time: int, common: int | None) -> None:
    original(arena, time, common)
    arena.side = 1 - arena.side


def no_first_run(original: Any, engine: StreamEngine, steps: Any) -> Any:
    try:
        return tuple(engine.memory.capture(run).launch for run in steps)
    except (EdgememError, RuntimeError):
        engine._shared.cuda_graphs = False
        return steps


def without_waiting(original: Any, arena: Arena) -> None:
    memory, start = arena.block._memory, arena._output_start  # type: ignore[attr-defined]
    memory.copy(arena._output.ctypes.data, arena.block.address + start, arena._output.nbytes, "DeviceToHost")


def tokens_alone(original: Any, arena: Arena) -> None:
    (place,) = arena.layout.step_inputs.values()
    arena.block.send(place.offset, arena._inputs[: place.nbytes])


def in_place(original: Any, arena: Arena, time: int, wanted: int, side: int) -> Any:
    outputs = original(arena, time, wanted, side)
    for state in arena._contract:
        if state.update == "replace":
            outputs[state.output_name] = arena.past(state, side)
    return outputs


def wrong_way_round(patch: Patch) -> None:
    for name in ("inputs", "outputs"):
        wrapped(Arena, name, lambda f, arena, time, wanted, side: f(arena, time, wanted, 1 - side))(patch)


def read_other_side(original: Any, arena: Arena) -> Any:
    arena.side = 1 - arena.side
    try:
        return original(arena)
    finally:
        arena.side = 1 - arena.side


MISTAKES: dict[str, Break] = {
    "the entry is too wide": geometry("width", 2),
    "the ring's stride is wrong": geometry("dst_pitch", 2),
    "the entries' stride is wrong": geometry("src_pitch", 2),
    "the stride from ring to ring is wrong": geometry("dst_slice", 2),
    "an entry goes one slot too far": wrapped(
        Arena, "commit", lambda f, arena, time, common: f(arena, time, None if common is None else common + 1)
    ),
    "rows that differ are appended at one slot": wrapped(
        Arena, "commit", lambda f, arena, time, common: f(arena, time, int(arena.positions[0]))
    ),
    "a chunk is not appended": wrapped(Rings, "_append_chunk", lambda f, rings, *what: None),
    "the sides never swap": wrapped(Arena, "commit", stands_still),
    "both graphs go one way": wrapped(Lane, "step_calls", lambda f, lane: f(lane)[:1] * 2),
    "the graphs are swapped": wrapped(Lane, "step_calls", lambda f, lane: f(lane)[::-1]),
    "the sides are bound the wrong way round": wrong_way_round,
    "a state is written where it is read": wrapped(Arena, "outputs", in_place),
    "the state is not restored after the capture": wrapped(
        Session, "stream", lambda f, session, batch=1, held=None: session.new_stream(batch)
    ),
    "nothing runs before the capture": wrapped(StreamEngine, "ready", no_first_run),
    "the output is read before it is there": wrapped(Arena, "fetch_step", without_waiting),
    "the positions are not sent": wrapped(Arena, "send_step", tokens_alone),
    "the tokens lie in ordinary memory": wrapped(
        CudaBlock, "host_buffer", lambda f, block, offset, nbytes: np.zeros(nbytes, np.uint8)
    ),
    "a fork does not wait for its origin": wrapped(StreamEngine, "finish", lambda f, engine: None),
    "a snapshot takes the wrong side": wrapped(Arena, "read_state", read_other_side),
}


def test_the_runtime_as_it_is_makes_none(device: Machine, bundle: Bundle) -> None:
    with device.open(bundle) as session:
        use(session)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(device: Machine, bundle: Bundle, monkeypatch: Patch, name: str) -> None:
    MISTAKES[name](monkeypatch)
    with device.open(bundle) as session, pytest.raises((AssertionError, EdgememError, ValueError)):
        use(session)
