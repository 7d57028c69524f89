"""Small bundles written by hand, so that the benchmark is tested without a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from safetensors.numpy import save_file

from edgemem.bundle import WEIGHTS, Bundle, GraphFile, Manifest, open_bundle, write_bundle
from edgemem.contract import METADATA_KEY, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.decoder_config import DecoderConfig
from edgemem.manifest import LoadOptions, SourceInfo

VOCAB, WIDTH, WINDOW = 16, 8, 4
Kind = Literal["append", "sealed", "growing"]
UNTIED = DecoderConfig(
    WIDTH, layers=1, heads=1, vocab_size=VOCAB, memory=[{"type": "window", "window": WINDOW}], tie_embeddings=False
)


def contract_of(kind: Kind) -> Contract:
    total = StateSpec("0.sum", (WIDTH,))
    ring = StateSpec("0.ring.k", (1, WINDOW, WIDTH), update="append" if kind == "append" else "replace")
    states = {
        "append": (total, ring),
        "sealed": (total, ring, StateSpec("position", (), "int64")),
        "growing": (total, StateSpec("0.kv.k", (1, None, WIDTH))),
    }[kind]
    return Contract(
        (InputSpec("tokens", (), "int64", VOCAB),),
        (OutputSpec("logits", (VOCAB,)),),
        states,
        max_chunk=WINDOW if kind == "append" else 1,
        position="none" if kind == "sealed" else "input",
    )


def write_tiny(
    path: Path,
    kind: Kind = "append",
    *,
    model: DecoderConfig | None = None,
    bias: float = 0.0,
    folded: np.ndarray[Any, Any] | None = None,
    max_position: int | None = None,
) -> Bundle:
    """logits = (embedding + decayed sum + sum of the ring) · head; the ring gets the embedding."""
    contract = replace(contract_of(kind), max_position=max_position)
    ring = contract.states[1]
    rng = np.random.default_rng(0)
    weights = {
        "embedding": rng.standard_normal((VOCAB, WIDTH), dtype=np.float32),
        "head": rng.standard_normal((WIDTH, VOCAB), dtype=np.float32),
    }
    constants: dict[str, Any] = {
        "one": np.array([1], dtype=np.int64),
        "two": np.array([2], dtype=np.int64),
        "far": np.array([2**40], dtype=np.int64),
        "half": np.float32(0.5),
        "bias": np.float32(bias),
    }
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["h"]),
        helper.make_node("ReduceSum", ["h", "one"], ["added"], keepdims=0),
        helper.make_node("Mul", ["past.0.sum", "half"], ["decayed"]),
        helper.make_node("Add", ["decayed", "added"], ["present.0.sum"]),
        helper.make_node("Unsqueeze", ["past.0.sum", "one"], ["sum"]),
        helper.make_node("ReduceSum", [ring.input_name, "two"], ["seen"], keepdims=0),
        helper.make_node("Add", ["h", "sum"], ["h1"]),
        helper.make_node("Add", ["h1", "seen"], ["h2"]),
        helper.make_node("MatMul", ["h2", "head"], ["scores"]),
        helper.make_node("Add", ["scores", "bias"], ["logits"]),
        helper.make_node("Unsqueeze", ["h", "one"], ["append.0.ring.k" if kind == "append" else "entry"]),
    ]
    if kind == "growing":
        nodes.append(helper.make_node("Concat", [ring.input_name, "entry"], [ring.output_name], axis=2))
    if kind == "sealed":
        nodes += [
            helper.make_node("Slice", [ring.input_name, "one", "far", "two"], ["kept"]),
            helper.make_node("Concat", ["kept", "entry"], [ring.output_name], axis=2),
            helper.make_node("Add", ["past.position", "one"], ["present.position"]),
        ]
    types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "time"])]
    if contract.position == "input":
        inputs.append(helper.make_tensor_value_info("position", TensorProto.INT64, ["batch"]))
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "time", VOCAB])]
    for state in contract:
        shape = ["batch", *("past" if size is None else size for size in state.shape)]
        inputs.append(helper.make_tensor_value_info(state.input_name, types[state.dtype], shape))
        if state.update == "append":
            shape[2] = "time"
        outputs.append(
            helper.make_tensor_value_info(
                state.output_name, types[state.dtype], ["total" if size == "past" else size for size in shape]
            )
        )
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in (weights | constants).items()]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, initializer=initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    helper.set_model_props(proto, {METADATA_KEY: json.dumps(contract.to_json())})
    with write_bundle(path) as writer:
        save_file(weights | ({} if folded is None else {"mask": folded}), writer.folder / WEIGHTS)
        save(proto, writer.folder / "model.onnx")
        writer.finish(
            Manifest(
                contract,
                (GraphFile("model.onnx", 1, contract.max_chunk),),
                source=SourceInfo("factory", "tiny"),
                model=model,
            )
        )
    return open_bundle(path)


def write_attention(path: Path, slots: int = 8, **source: Any) -> Bundle:
    """One layer of attention over a ring, by the native operator: as a Hugging Face model with a bounded cache."""
    ring = (1, slots, WIDTH)
    states = tuple(StateSpec(f"0.window.{name}", ring, update="append") for name in "kv")
    tokens = InputSpec("tokens", (), "int64", VOCAB)
    contract = Contract((tokens,), (OutputSpec("logits", (VOCAB,)),), states, 4, max_position=source.get("max_length"))
    rng = np.random.default_rng(0)
    weights = {"embedding": rng.standard_normal((VOCAB, WIDTH), np.float32)}
    weights["head"] = rng.standard_normal((WIDTH, VOCAB), np.float32)
    rings = [state.input_name for state in states]
    nodes = [
        helper.make_node("Gather", ["embedding", "tokens"], ["h"]),
        helper.make_node(
            "MemoryAttention", ["h", "h", "h", "position", "", "", "", "", *rings],
            ["read", *(state.output_name for state in states)], domain="edgemem", memories="window", heads=1,
            kv_heads=1, scale=0.3, softcap=0.0, rotate=0, heads_first=0, window=slots, rotary_start=0, neighbours=0,
            by_slot=0,
        ),
        helper.make_node("MatMul", ["read", "head"], ["logits"]),
    ]  # fmt: skip
    given = [("tokens", TensorProto.INT64, ["batch", "time"]), ("position", TensorProto.INT64, ["batch"])]
    given += [(name, TensorProto.FLOAT, ["batch", *ring]) for name in rings]
    made = [("logits", TensorProto.FLOAT, ["batch", "time", VOCAB])]
    made += [(state.output_name, TensorProto.FLOAT, ["batch", 1, "time", WIDTH]) for state in states]
    graph = helper.make_graph(
        nodes, "attention", *([helper.make_tensor_value_info(*each) for each in side] for side in (given, made)),
        initializer=[numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("edgemem", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    helper.set_model_props(proto, {METADATA_KEY: json.dumps(contract.to_json())})
    with write_bundle(path) as writer:
        save_file(weights, writer.folder / WEIGHTS)
        save(proto, writer.folder / "model.onnx")
        about = SourceInfo("transformers", "tiny", options=LoadOptions(**source))
        writer.finish(Manifest(contract, (GraphFile("model.onnx", 1, 4, "model.onnx"),), source=about))
    return open_bundle(path)


def write_decoder(path: Path) -> Bundle:
    """A bundle for the torch runtime: a decoder's configuration and weights. Nothing is traced: its graph is empty."""
    import torch

    from edgemem.models import Decoder

    module = Decoder(UNTIED)
    with write_bundle(path) as writer, torch.no_grad():
        save_file({name: tensor.numpy() for name, tensor in module.state_dict().items()}, writer.folder / WEIGHTS)
        (writer.folder / "model.onnx").write_bytes(b"")
        graphs = (GraphFile("model.onnx", 1, 1),)
        writer.finish(Manifest(module.contract(), graphs, source=SourceInfo("config", "tiny"), model=UNTIED))
    return open_bundle(path)
