"""Tiny models written by hand as ONNX nodes, each with an oracle straight from its formula in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgemem.bundle import Bundle, GraphFile, Manifest, open_bundle, write_bundle
from edgemem.contract import (
    METADATA_KEY,
    OUTPUT_INDICES,
    POSITION,
    Contract,
    InputSpec,
    OutputSpec,
    StateSpec,
    TensorSpec,
)
from edgemem.dtypes import element_type


class Nodes:
    """A graph under construction: ``nodes.Add(a, b)`` appends a node and gives its output's name."""

    def __init__(self) -> None:
        self.list: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def const(self, value: Any, dtype: Any = None) -> str:
        name = f"const_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def __getattr__(self, op: str) -> Callable[..., str]:
        def add(*inputs: str, out: str | None = None, **attributes: Any) -> str:
            name = out or f"{op}_{len(self.list)}"
            self.list.append(helper.make_node(op, list(inputs), [name], **attributes))
            return name

        return add

    def size(self, tensor: str, axis: int) -> str:
        return self.Shape(tensor, start=axis, end=axis + 1)

    def arange(self, count: str) -> str:
        return self.Range(self.const(0), self.Squeeze(count), self.const(1))


def model_proto(contract: Contract, nodes: Nodes, *, opset: int = 20, metadata: str | None = None) -> onnx.ModelProto:
    """An ONNX model whose inputs and outputs are those of the contract."""

    def value(tensor: TensorSpec) -> onnx.ValueInfoProto:
        axes = [axis if isinstance(axis, int) else str(axis) for axis in tensor.axes]
        return helper.make_tensor_value_info(tensor.name, element_type(tensor.dtype).onnx, axes)

    graph_file = GraphFile("", 1, 2)
    inputs = [value(tensor) for tensor in contract.inputs(graph_file)]
    outputs = [value(tensor) for tensor in contract.outputs(graph_file)]
    graph = helper.make_graph(nodes.list, "tiny", inputs, outputs, initializer=nodes.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: metadata or json.dumps(contract.to_json())})
    return model


def save_bundle(
    path: Path, contract: Contract, model: onnx.ModelProto, graphs: Sequence[tuple[int, int]] | None = None
) -> Bundle:
    """A bundle with the same ONNX file once for each range of time steps."""
    files = [
        GraphFile(f"model{i}.onnx", low, high) for i, (low, high) in enumerate(graphs or [(1, contract.max_chunk)])
    ]
    with write_bundle(path) as writer:
        for file in files:
            onnx.save(model, writer.folder / file.file)
        writer.finish(Manifest(contract=contract, graphs=tuple(files)))
    return open_bundle(path)


# A token model: two rings of one shape and one of another, a decayed sum, a counter.

VOCAB, WIDTH, WINDOW, LONG, CHUNK, DECAY = 11, 3, 4, 6, 4, 0.75
TABLE = np.random.default_rng(0).normal(size=(VOCAB, WIDTH)).astype(np.float32)
TABLE.flags.writeable = False

TOKENS = Contract(
    input_specs=(InputSpec("tokens", (), "int64", VOCAB),),
    output_specs=(OutputSpec("logits", (WIDTH + 2,)),),
    states=(
        StateSpec("0.window.k", (2, WINDOW, WIDTH), update="append"),
        StateSpec("0.decayed.m", (WIDTH,), initial=0.5),
        StateSpec("0.window.v", (2, WINDOW, WIDTH), update="append"),
        StateSpec("1.count.n", (), "int64"),
        StateSpec("1.window.k", (1, LONG, 1), update="append"),
    ),
    max_chunk=CHUNK,
    output_indices=True,
)


def _ring_sum(nodes: Nodes, ring: str, entries: str, window: int) -> str:
    """``[B, H, T, D]``: for each step the sum of the last ``window`` entries, its own included."""
    step = nodes.arange(nodes.size("tokens", 1))  # [T]
    p = nodes.Reshape(POSITION, nodes.const([-1, 1]))  # [B, 1]
    last = nodes.Sub(p, nodes.const(1))
    slots = nodes.const(np.arange(window)[np.newaxis])
    held = nodes.Sub(last, nodes.Mod(nodes.Sub(last, slots), nodes.const(window)))  # [B, W]: position in each slot
    age = nodes.Sub(
        nodes.Unsqueeze(nodes.Add(p, step), nodes.const([2])), nodes.Unsqueeze(held, nodes.const([1]))
    )  # [B, T, W]
    live = nodes.And(
        nodes.Less(age, nodes.const(window)),
        nodes.Unsqueeze(nodes.GreaterOrEqual(held, nodes.const(0)), nodes.const([1])),
    )
    past = nodes.Einsum(nodes.Cast(live, to=TensorProto.FLOAT), ring, equation="btw,bhwd->bhtd")
    ahead = nodes.Sub(nodes.Unsqueeze(step, nodes.const([1])), step)  # [T, T]
    near = nodes.And(nodes.GreaterOrEqual(ahead, nodes.const(0)), nodes.Less(ahead, nodes.const(window)))
    present = nodes.Einsum(nodes.Cast(near, to=TensorProto.FLOAT), entries, equation="ts,bhsd->bhtd")
    return nodes.Add(past, present)


def tokens_model(contract: Contract = TOKENS, **options: Any) -> onnx.ModelProto:
    nodes = Nodes()
    e = nodes.Gather(nodes.const(TABLE), "tokens")  # [B, T, D]
    heads = nodes.const(np.array([1, -2], np.float32).reshape(1, 2, 1, 1))
    k = nodes.Mul(nodes.Unsqueeze(e, nodes.const([1])), heads, out="append.0.window.k")
    v = nodes.Mul(k, k, out="append.0.window.v")
    ids = nodes.Unsqueeze(nodes.Cast("tokens", to=TensorProto.FLOAT), nodes.const([1, 3]), out="append.1.window.k")
    kv = nodes.Add(_ring_sum(nodes, "past.0.window.k", k, WINDOW), _ring_sum(nodes, "past.0.window.v", v, WINDOW))
    window = nodes.ReduceSum(kv, nodes.const([1]), keepdims=0)  # [B, T, D]
    long = nodes.Squeeze(_ring_sum(nodes, "past.1.window.k", ids, LONG), nodes.const([1]))  # [B, T, 1]

    step = nodes.arange(nodes.size("tokens", 1))
    gap = nodes.Cast(nodes.Sub(nodes.Unsqueeze(step, nodes.const([1])), step), to=TensorProto.FLOAT)
    power = nodes.Trilu(nodes.Pow(nodes.const(DECAY, np.float32), gap), upper=0)  # [T, T]
    since = nodes.Pow(nodes.const(DECAY, np.float32), nodes.Cast(nodes.Add(step, nodes.const(1)), to=TensorProto.FLOAT))
    decayed = nodes.Add(
        nodes.Einsum(since, "past.0.decayed.m", equation="t,bd->btd"), nodes.MatMul(power, e)
    )  # [B, T, D]
    nodes.Gather(decayed, nodes.const(-1), axis=1, out="present.0.decayed.m")

    nodes.Add("past.1.count.n", nodes.Squeeze(nodes.size("tokens", 1)), out="present.1.count.n")
    count = nodes.Add(nodes.Unsqueeze("past.1.count.n", nodes.const([1])), nodes.Add(step, nodes.const(1)))
    counted = nodes.Unsqueeze(nodes.Cast(count, to=TensorProto.FLOAT), nodes.const([2]))
    everything = nodes.Concat(nodes.Add(window, decayed), long, counted, axis=-1)
    nodes.Gather(everything, OUTPUT_INDICES, axis=1, out="logits")
    return model_proto(contract, nodes, **options)


def tokens_outputs(history: Sequence[int]) -> np.ndarray:
    """What the model puts out for every token of one stream, ``[T, D + 2]``, in float64."""
    table = TABLE.astype(np.float64)
    out = np.empty((len(history), WIDTH + 2))
    for i in range(len(history)):
        e = table[history[max(0, i - WINDOW + 1) : i + 1]]
        pairs = sum((e * h).sum(0) + ((e * h) ** 2).sum(0) for h in (1, -2))
        decayed = DECAY ** (i + 1) * 0.5 + sum(DECAY ** (i - j) * table[history[j]] for j in range(i + 1))
        out[i] = [*(pairs + decayed), sum(history[max(0, i - LONG + 1) : i + 1]), i + 1]
    return out


def tokens_state(history: Sequence[int]) -> dict[str, np.ndarray]:
    """The state after ``history`` of one stream, without a batch axis."""
    state = {
        "0.window.k": np.zeros((2, WINDOW, WIDTH), np.float32),
        "0.window.v": np.zeros((2, WINDOW, WIDTH), np.float32),
        "1.window.k": np.zeros((1, LONG, 1), np.float32),
        "1.count.n": np.array(len(history)),
    }
    decayed = np.full(WIDTH, 0.5)
    for position, token in enumerate(history):
        for head, factor in enumerate(np.float32([1, -2])):
            state["0.window.k"][head, position % WINDOW] = TABLE[token] * factor
            state["0.window.v"][head, position % WINDOW] = (TABLE[token] * factor) ** 2
        state["1.window.k"][0, position % LONG] = token
        decayed = DECAY * decayed + TABLE[token]
    state["0.decayed.m"] = decayed.astype(np.float32)
    return state


def stacked(states: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """States of several streams as one batch."""
    return {name: np.stack([state[name] for state in states]) for name in states[0]}


# Models of real values: the state is replaced alone, the host need not know the position.

FEATURES = Contract(
    input_specs=(InputSpec("features", (2,)),),
    output_specs=(OutputSpec("predictions", (2,)),),
    states=(StateSpec("0.sum.s", (2,)), StateSpec("position", (), "int64")),
    max_chunk=5,
    position="none",
)


def features_model(contract: Contract = FEATURES) -> onnx.ModelProto:
    """The cumulative sum of ``1 / x``, divided by the number of steps: NaN and infinity are easy to provoke."""
    nodes = Nodes()
    sums = nodes.Add(
        nodes.CumSum(nodes.Reciprocal("features"), nodes.const(1)), nodes.Unsqueeze("past.0.sum.s", nodes.const([1]))
    )
    nodes.Gather(sums, nodes.const(-1), axis=1, out="present.0.sum.s")
    time = nodes.size("features", 1)
    nodes.Add("past.position", nodes.Squeeze(time), out="present.position")
    count = nodes.Add(nodes.Unsqueeze("past.position", nodes.const([1])), nodes.Add(nodes.arange(time), nodes.const(1)))
    nodes.Div(sums, nodes.Unsqueeze(nodes.Cast(count, to=TensorProto.FLOAT), nodes.const([2])), out="predictions")
    return model_proto(contract, nodes)


BFLOAT16 = Contract(
    input_specs=(InputSpec("features", (2,), "bfloat16"),),
    output_specs=(OutputSpec("predictions", (2,), "bfloat16"),),
    states=(StateSpec("0.sum.s", (2,), "bfloat16", initial=1.5),),
    max_chunk=3,
    position="none",
)


def bfloat16_model(contract: Contract = BFLOAT16) -> onnx.ModelProto:
    """A sum carried in bfloat16."""
    nodes = Nodes()
    x = nodes.Cast("features", to=TensorProto.FLOAT)
    past = nodes.Unsqueeze(nodes.Cast("past.0.sum.s", to=TensorProto.FLOAT), nodes.const([1]))
    total = nodes.Add(nodes.CumSum(x, nodes.const(1)), past)
    nodes.Cast(total, to=TensorProto.BFLOAT16, out="predictions")
    nodes.Cast(nodes.Gather(total, nodes.const(-1), axis=1), to=TensorProto.BFLOAT16, out="present.0.sum.s")
    return model_proto(contract, nodes)


# A full cache beside a ring: the baseline.

GROWING = Contract(
    input_specs=(InputSpec("tokens", (), "int64", VOCAB),),
    output_specs=(OutputSpec("logits", (WIDTH + 1,)),),
    states=(StateSpec("0.full.k", (1, None, WIDTH)), StateSpec("1.window.k", (1, LONG, 1), update="append")),
    max_chunk=5,
    output_indices=True,
)


def growing_model(contract: Contract = GROWING) -> onnx.ModelProto:
    """The sum of all embeddings so far, and of the last token ids."""
    nodes = Nodes()
    e = nodes.Gather(nodes.const(TABLE), "tokens")
    nodes.Concat("past.0.full.k", nodes.Unsqueeze(e, nodes.const([1])), axis=2, out="present.0.full.k")
    before = nodes.ReduceSum("past.0.full.k", nodes.const([2]), keepdims=1)
    total = nodes.Add(nodes.Squeeze(before, nodes.const([1])), nodes.CumSum(e, nodes.const(1)))
    ids = nodes.Unsqueeze(nodes.Cast("tokens", to=TensorProto.FLOAT), nodes.const([1, 3]), out="append.1.window.k")
    recent = nodes.Squeeze(_ring_sum(nodes, "past.1.window.k", ids, LONG), nodes.const([1]))
    nodes.Gather(nodes.Concat(total, recent, axis=-1), OUTPUT_INDICES, axis=1, out="logits")
    return model_proto(contract, nodes)


def growing_outputs(history: Sequence[int]) -> np.ndarray:
    ids = np.array(history, np.float64)
    recent = [ids[max(0, i - LONG + 1) : i + 1].sum() for i in range(len(history))]
    return np.concatenate([TABLE.astype(np.float64)[list(history)].cumsum(0), np.array(recent)[:, np.newaxis]], axis=1)


@dataclass(frozen=True)
class Kind:
    """How a token bundle is cut into graphs."""

    name: str
    graphs: tuple[tuple[int, int], ...]


KINDS = (
    Kind("one graph", ((1, CHUNK),)),
    Kind("step and chunk", ((1, 1), (2, CHUNK))),
    Kind("step alone", ((1, 1),)),
    Kind("step and a chunk of one length", ((1, 1), (3, 3))),
)


OVERFLOW = Contract(
    input_specs=(InputSpec("features", (1,)),),
    output_specs=(OutputSpec("predictions", (1,)),),
    states=(StateSpec("0.ring.k", (1, 4, 1), update="append"), StateSpec("0.total.s", (1,))),
    max_chunk=4,
)


def overflow_model(contract: Contract = OVERFLOW) -> onnx.ModelProto:
    """Squares go into a ring and, times thirty, into a sum; the output is the data, so it stays finite."""
    nodes = Nodes()
    square = nodes.Mul("features", "features")  # [B, T, 1]
    nodes.Unsqueeze(square, nodes.const([1]), out="append.0.ring.k")
    thirty = nodes.ReduceSum(nodes.Mul(square, nodes.const(30, np.float32)), nodes.const([1]), keepdims=0)
    nodes.Add("past.0.total.s", thirty, out="present.0.total.s")
    nodes.Identity("features", out="predictions")
    return model_proto(contract, nodes)
