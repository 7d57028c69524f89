"""Small bundles written by hand, whose outputs are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from edgemem.bundle import WEIGHTS, GraphFile, Manifest, write_bundle
from edgemem.contract import METADATA_KEY, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.manifest import SourceInfo

RECITED = "the naïve café serves 東京 tea. "
"""What the reciting model writes again and again, whatever it reads, in UTF-8: byte p + 1 at position p."""

RECITER = Contract(
    input_specs=(InputSpec("tokens", (), "int64", vocab_size=256),),
    output_specs=(OutputSpec("logits", (256,)),),
    states=(StateSpec("0.sum.total", (1,)),),
    max_chunk=16,
)
SUMMER = Contract(
    input_specs=(InputSpec("features", (2,)),),
    output_specs=(OutputSpec("sums", (2,)),),
    states=(StateSpec("0.sum.total", (2,)),),
    max_chunk=16,
    position="none",
)

_RECITER_GRAPH = """
<ir_version: 8, opset_import: ["" : 20]>
reciter (int64[batch, time] tokens, int64[batch] position, float[batch, 1] "past.0.sum.total")
    => (float[batch, time, 256] logits, float[batch, 1] "present.0.sum.total")
<int64[N] text, int64[1] length, int64 zero = {0}, int64 one = {1}, int64[1] last = {-1}, int64[1] ids = {256},
 float[2] levels = {0, 8}>
{
    shape = Shape<start = 1>(tokens)
    time = Squeeze(shape)
    steps = Range(zero, time, one)
    column = Unsqueeze(position, last)
    now = Add(column, steps)
    next = Add(now, one)
    place = Mod(next, length)
    said = Gather(text, place)
    logits = OneHot(said, ids, levels)
    numbers = Cast<to = 1>(tokens)
    added = ReduceSum<keepdims = 1>(numbers, last)
    "present.0.sum.total" = Add("past.0.sum.total", added)
}
"""
SUMMER_GRAPH = """
<ir_version: 8, opset_import: ["" : 20]>
summer (float[batch, time, 2] features, float[batch, 2] "past.0.sum.total")
    => (float[batch, time, 2] sums, float[batch, 2] "present.0.sum.total")
<int64[1] time = {1}, int64 axis = {1}>
{
    running = CumSum(features, axis)
    past = Unsqueeze("past.0.sum.total", time)
    sums = Add(running, past)
    added = ReduceSum<keepdims = 0>(features, time)
    "present.0.sum.total" = Add("past.0.sum.total", added)
}
"""


def write_graph(
    folder: Path,
    text: str,
    contract: Contract,
    tensors: dict[str, Any],
    files: Mapping[str, str] | None = None,
    **manifest: Any,
) -> Path:
    """A bundle of one graph, given as ONNX text; ``tensors`` replace initializers of the same names."""
    model = onnx.parser.parse_model(text)
    for tensor in list(model.graph.initializer):
        if tensor.name in tensors:
            model.graph.initializer.remove(tensor)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in tensors.items())
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(contract.to_json())})
    onnx.checker.check_model(model, full_check=True)
    with write_bundle(folder) as writer:
        onnx.save(model, writer.folder / "model.onnx")
        for name, content in (files or {}).items():
            (writer.folder / name).write_text(content, encoding="utf-8")
        writer.finish(Manifest(contract, (GraphFile("model.onnx", 1, contract.max_chunk),), **manifest))
    return folder


def write_reciter(folder: Path, tokenizer: str | None = "bytes", max_position: int | None = None) -> Path:
    """A model of tokens that writes :data:`RECITED` again and again, or up to a position."""
    data = np.frombuffer(RECITED.encode(), dtype=np.uint8).astype(np.int64)
    tensors = {"text": data, "length": np.array([len(data)])}
    facts = {"source": SourceInfo("factory", "reciter"), "input_meaning": "UTF-8 bytes", "tokenizer": tokenizer}
    contract = replace(RECITER, max_position=max_position)
    return write_graph(folder, _RECITER_GRAPH, contract, tensors, **facts)


def write_token_reciter(
    folder: Path, ids: Sequence[int], vocab_size: int, files: Mapping[str, str], **manifest: Any
) -> Path:
    """A model of ``vocab_size`` tokens that writes ``ids`` again and again: id p + 1 at position p."""
    contract = replace(
        RECITER,
        input_specs=(InputSpec("tokens", (), "int64", vocab_size=vocab_size),),
        output_specs=(OutputSpec("logits", (vocab_size,)),),
    )
    graph = _RECITER_GRAPH.replace("256", str(vocab_size))
    tensors = {"text": np.array(ids, dtype=np.int64), "length": np.array([len(ids)])}
    return write_graph(folder, graph, contract, tensors, files, tokenizer="tokenizer.json", **manifest)


def write_summer(folder: Path, width: int = 2) -> Path:
    """A model of ``width`` features that outputs the sum of all rows so far."""
    contract = replace(
        SUMMER,
        input_specs=(replace(SUMMER.input, shape=(width,)),),
        output_specs=(replace(SUMMER.output, shape=(width,)),),
        states=(replace(SUMMER.states[0], shape=(width,)),),
    )
    graph = SUMMER_GRAPH.replace(", 2]", f", {width}]")
    return write_graph(folder, graph, contract, {}, source=SourceInfo("factory", "summer"))


_LOOKER_GRAPH = """
<ir_version: 8, opset_import: ["" : 20]>
looker (int64[batch, time] tokens, float[batch, 1] "past.0.sum.total")
    => (float[batch, time, 16] values, float[batch, 1] "present.0.sum.total")
<float[64, 16] table>
{
    values = Gather(table, tokens)
    "present.0.sum.total" = Identity("past.0.sum.total")
}
"""


def write_looker(folder: Path, scale: float) -> Path:
    """A model of tokens whose outputs are ``scale`` times the token, looked up in external data of 4 KiB."""
    contract = replace(
        RECITER,
        input_specs=(InputSpec("tokens", (), "int64", vocab_size=64),),
        output_specs=(OutputSpec("values", (16,)),),
        position="none",
    )
    model = onnx.parser.parse_model(_LOOKER_GRAPH)
    del model.graph.initializer[:]
    table = np.repeat(np.arange(64, dtype=np.float32)[:, None] * np.float32(scale), 16, axis=1)
    model.graph.initializer.append(numpy_helper.from_array(table, "table"))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], WEIGHTS, offset=0, length=table.nbytes)
    model.graph.initializer[0].ClearField("raw_data")
    onnx.helper.set_model_props(model, {METADATA_KEY: json.dumps(contract.to_json())})
    with write_bundle(folder) as writer:
        (writer.folder / "model.onnx").write_bytes(model.SerializeToString())
        (writer.folder / WEIGHTS).write_bytes(table.tobytes())
        writer.finish(Manifest(contract, (GraphFile("model.onnx", 1, contract.max_chunk),)))
    return folder
