"""Contracts of any shape on the device runtime: many rings and states, widths that fill alignment units and do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from edgemem.bundle import Bundle
from edgemem.contract import POSITION, Contract, InputSpec, OutputSpec, StateSpec, initial_state
from edgemem.dtypes import element_type
from edgemem.runtimes.rings import write_ring
from tests.runtimes import tiny
from tests.runtimes.trt.machine import machine

WIDTH = 2


@st.composite
def contracts(draw: st.DrawFn) -> Contract:
    max_chunk = draw(st.integers(1, 4))
    shapes = [
        (draw(st.integers(1, 3)), max_chunk + draw(st.integers(0, 3)), draw(st.sampled_from([1, 3, 32, 64])))
        for _ in range(2)
    ]
    dtypes = st.sampled_from(["float32", "float16"])
    states = [
        StateSpec(f"{i}.window.k", draw(st.sampled_from(shapes)), draw(dtypes), "append")
        for i in range(draw(st.integers(1, 5)))
    ]
    states += [
        StateSpec(f"{i}.mean.s", draw(st.sampled_from([(), (3,), (2, 5), (64,)])), draw(dtypes), initial=0.25)
        for i in range(draw(st.integers(0, 3)))
    ]
    draw(st.randoms(use_true_random=False)).shuffle(states)
    return Contract((InputSpec("tokens", (), "int64", 9),), (OutputSpec("logits", (WIDTH,)),), tuple(states), max_chunk)


def pattern(state: StateSpec, index: int) -> np.ndarray:
    """What one unit of data adds to a state: ``[H, 1, D]`` or its shape. Small numbers, exact in float16."""
    shape = state.fixed_shape if state.update == "replace" else (state.fixed_shape[0], 1, state.fixed_shape[2])
    return ((np.arange(np.prod(shape, dtype=int)) * (index + 1)) % 5 - 2).reshape(shape).astype(np.float32) / 4


def weights(state: StateSpec, index: int) -> np.ndarray:
    """What each element of a state counts in the output, ``[N, WIDTH]``: no two slots the same."""
    size = int(np.prod(state.fixed_shape, dtype=int))
    return np.random.default_rng(index).normal(size=(size, WIDTH)).astype(np.float32)


def model(contract: Contract) -> Any:
    """Every call puts out a weighted sum of the states before it, plus position, plus the data of each step."""
    nodes = tiny.Nodes()
    x = nodes.Cast("tokens", to=TensorProto.FLOAT)  # [B, T]
    total = nodes.Unsqueeze(x, nodes.const([2]))  # [B, T, 1]
    where = nodes.Cast(nodes.Unsqueeze(POSITION, nodes.const([1, 2])), to=TensorProto.FLOAT)
    total = nodes.Add(total, where)
    added = nodes.ReduceSum(x, nodes.const([1]), keepdims=0)  # [B]
    for index, state in enumerate(contract):
        kind = element_type(state.dtype).onnx
        past = nodes.Cast(state.input_name, to=TensorProto.FLOAT)
        flat = nodes.Reshape(past, nodes.const([0, -1] if state.shape else [-1, 1]))
        seen = nodes.Unsqueeze(nodes.MatMul(flat, nodes.const(weights(state, index))), nodes.const([1]))
        total = nodes.Add(total, seen)
        if state.update == "append":
            new = nodes.Mul(nodes.Unsqueeze(x, nodes.const([1, 3])), nodes.const(pattern(state, index)))
        else:
            axes = nodes.const(list(range(1, 1 + len(state.shape))), np.int64)
            grown = nodes.Mul(nodes.Unsqueeze(added, axes), nodes.const(pattern(state, index)))
            new = nodes.Add(nodes.Mul(past, nodes.const(0.5, np.float32)), grown)
        nodes.Cast(new, to=kind, out=state.output_name)
    nodes.Identity(total, out="logits")
    return tiny.model_proto(contract, nodes)


class Oracle:
    """The same in numpy, call by call."""

    def __init__(self, contract: Contract, batch: int) -> None:
        self.contract = contract
        self.state = {state.name: initial_state(state, batch) for state in contract}
        self.positions = np.zeros(batch, np.int64)

    def call(self, data: np.ndarray) -> np.ndarray:
        x = data.astype(np.float32)
        total = x[:, :, np.newaxis] + self.positions.astype(np.float32)[:, np.newaxis, np.newaxis]
        new = {}
        for index, state in enumerate(self.contract):
            past = self.state[state.name].astype(np.float32)
            total = total + (past.reshape(len(x), -1) @ weights(state, index))[:, np.newaxis]
            if state.update == "append":
                value = x[:, np.newaxis, :, np.newaxis] * pattern(state, index)
            else:
                value = past / 2 + x.sum(1).reshape(-1, *[1] * len(state.shape)) * pattern(state, index)
            new[state.name] = value.astype(state.dtype)
        for state in self.contract:
            if state.update == "append":
                write_ring(self.state[state.name], new[state.name], self.positions)
            else:
                self.state[state.name] = new[state.name]
        self.positions += x.shape[1]
        return total


@given(
    contract=contracts(),
    batch=st.integers(1, 3),
    runtime=st.sampled_from(["tensorrt", "tensorrt-rtx"]),
    turns=st.lists(st.integers(0, 7), min_size=3, max_size=9),
)
@settings(max_examples=25, deadline=None)
def test_every_ring_and_state_goes_where_it_should(
    tmp_path_factory: pytest.TempPathFactory, contract: Contract, batch: int, runtime: str, turns: list[int]
) -> None:
    bundle: Bundle = tiny.save_bundle(tmp_path_factory.mktemp("any") / "b", contract, model(contract))
    rng = np.random.default_rng(len(turns))
    oracle = Oracle(contract, batch)
    with machine(runtime) as here, here.open(bundle, max_batch=3) as session:
        stream = session.stream(batch)
        for length in turns:
            if length == 0:  # rows go apart
                row = int(rng.integers(batch))
                stream.reset([row])
                oracle.positions[row] = 0
                for state in contract:
                    oracle.state[state.name][row] = initial_state(state, 1)[0]
                continue
            data = rng.integers(0, 9, (batch, length))
            got = stream.feed(data, "all") if length > 1 else stream.step(data[:, 0])[:, np.newaxis]
            done, wanted = 0, []
            for piece in session.pieces(length):
                wanted.append(oracle.call(data[:, done : done + piece]))
                done += piece
            np.testing.assert_allclose(got, np.concatenate(wanted, 1), rtol=1e-4, atol=1e-3)
            stream = stream.fork() if length % 3 == 0 else stream
        for name, value in oracle.state.items():
            np.testing.assert_array_equal(stream.state()[name], value, name)
