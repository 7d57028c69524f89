"""Graphs whose tensors have their axes in another order, or lack one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edgemem
from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import ContractError, InputError
from edgemem.runtimes import Session
from tests.runtimes import tiny

WIDTH = 3


def open_graph(folder: Path, contract: Contract, nodes: tiny.Nodes) -> Session:
    bundle = tiny.save_bundle(folder / "layout", contract, tiny.model_proto(contract, nodes))
    return edgemem.open(bundle.path, "onnxruntime", device="cpu", threads=1)


def time_first(folder: Path) -> Session:
    """``[T, B, 3]`` in and ``[3, T, B]`` out, as recurrent layers of old have it; the state is ``[1, B, 3]``.

    The output at a step is the input plus the state at the start of the call; the state becomes the sum of the call.
    """
    contract = Contract(
        (InputSpec("x", (WIDTH,), batch_axis=1, time_axis=0),),
        (OutputSpec("y", (WIDTH,), batch_axis=2, time_axis=1),),
        (StateSpec("lstm.h", (1, WIDTH), batch_axis=1, input="h0", output="h1"),),
        max_chunk=4,
        position="none",
    )
    n = tiny.Nodes()
    n.Transpose(n.Add("x", "h0"), perm=[2, 0, 1], out="y")
    n.Add(n.Mul("h0", n.const(np.float32(0.5))), n.ReduceSum("x", n.const([0])), out="h1")
    return open_graph(folder, contract, n)


def test_batch_and_time_axes_may_lie_anywhere(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 9, WIDTH)).astype(np.float32)
    with time_first(tmp_path) as session:
        stream = session.stream(2)
        found = np.stack([stream.step(x[:, i]).copy() for i in range(9)], axis=1)
        state, wanted = np.zeros((2, WIDTH)), []
        for i in range(9):
            wanted.append(x[:, i] + state)
            state = 0.5 * state + x[:, i]
        np.testing.assert_allclose(found, np.stack(wanted, 1), atol=1e-5)
        np.testing.assert_allclose(stream.state()["lstm.h"][:, 0], state, atol=1e-5)
        assert stream.state()["lstm.h"].shape == (2, 1, WIDTH)


def test_rows_of_any_layout_are_forked_reset_saved_and_fed_in_chunks(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(3, 8, WIDTH)).astype(np.float32)
    with time_first(tmp_path) as session:
        stream = session.stream(3)
        every = stream.feed(x, "all")
        assert every.shape == (3, 8, WIDTH)
        np.testing.assert_array_equal(session.stream(3).feed(x), every[:, -1])
        copy = stream.fork([2, 0])
        np.testing.assert_array_equal(copy.state()["lstm.h"], stream.state()["lstm.h"][[2, 0]])
        stream.reset([1])
        kept = stream.state()["lstm.h"]
        assert not kept[1].any()
        assert kept[0].any()
        other = session.stream(3)
        other.restore(stream.snapshot())
        np.testing.assert_array_equal(other.step(x[:, 0]), stream.step(x[:, 0]))


def test_a_graph_without_a_batch_axis_computes_one_stream(tmp_path: Path) -> None:
    contract = Contract(
        (InputSpec("frame", (4,), batch_axis=None, time_axis=None),),
        (OutputSpec("energy", (), batch_axis=None, time_axis=None),),
        (StateSpec("0.sum.s", (4,), batch_axis=None),),
        max_chunk=1,
        position="none",
    )
    n = tiny.Nodes()
    n.Add("past.0.sum.s", "frame", out="present.0.sum.s")
    n.ReduceSum("present.0.sum.s", keepdims=0, out="energy")
    with open_graph(tmp_path, contract, n) as session:
        stream = session.stream()
        for i in range(1, 4):
            np.testing.assert_array_equal(stream.step(np.ones(4)), [4 * i])
        np.testing.assert_array_equal(stream.feed(np.ones((2, 4)), "all"), [[16, 20]])
        twin = stream.fork()
        np.testing.assert_array_equal(twin.step(np.ones(4)), stream.step(np.ones(4)))
        with pytest.raises(InputError, match=r"without a batch axis.*\n.*Open several streams"):
            session.stream(2)
        with pytest.raises(InputError, match="cannot be joined"):
            type(stream).join([stream, twin])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_chunk": 2}, "has no time axis, so a call takes one step"),
        ({"output_indices": True}, "output_indices needs"),
        ({"position": "input"}, "every input, output and state needs a batch axis"),
    ],
)
def test_a_contract_that_cannot_be_kept_without_axes_is_refused(change: dict[str, object], message: str) -> None:
    fields = {"max_chunk": 1, "position": "none", **change}
    with pytest.raises(ContractError, match=message):
        Contract(
            (InputSpec("frame", (4,), time_axis=None),),
            (OutputSpec("energy", ()),),
            (StateSpec("s", (4,), batch_axis=None),),
            **fields,  # type: ignore[arg-type]
        )
