"""Graphs of one operator, and their runs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from edgemem.runtimes import native
from tests.runtimes.native.oracle import Array, Call, angles, rotated

TENSORS = {
    "window": ("k", "v"),
    "sinks": ("k", "v"),
    "cumulative": ("mean", "carry"),
    "geometric": ("sum", "mass"),
    "gated_average": ("sum", "mass"),
    "moving_average": ("pairs",),
    "weighted_average": ("pairs",),
    "compressed": ("slots", "partial"),
    "exact": ("slots", "surprise"),
}
KINDS = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}
KINDS |= {np.dtype(np.int64): TensorProto.INT64, np.dtype(np.int8): TensorProto.INT8}


def tensors(call: Call, m: int) -> tuple[str, ...]:
    """Names of the states of a call's memory ``m``, in the operator's order."""
    names = TENSORS[call.memories[m].split(":")[0]]
    return tuple(part for name in names for part in (name, f"{name}_scale") if f"{m}.{part}" in call.states)


def session(
    operator: str,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, type],
    threads: int = 1,
    int4: Collection[str] = (),
    exact: bool = False,
    **attributes: Any,
) -> ort.InferenceSession:
    """A session whose graph is one node; an input that is ``None`` is absent, those of ``int4`` are constants."""
    names = [name if value is not None else "" for name, value in inputs.items()]
    node = helper.make_node(operator, names, list(outputs), domain="edgemem", **attributes)
    graph = helper.make_graph(
        [node],
        operator,
        [
            helper.make_tensor_value_info(name, KINDS[value.dtype], [None] * value.ndim)
            for name, value in inputs.items()
            if value is not None and name not in int4
        ],
        [helper.make_tensor_value_info(name, KINDS[np.dtype(kind)], None) for name, kind in outputs.items()],
        [int4_tensor(name, inputs[name]) for name in int4],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("edgemem", 1)], ir_version=10
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    library = os.environ.get("EDGEMEM_TEST_NATIVE_LIBRARY") or str(native.library())
    options.register_custom_ops_library(library)
    ctypes.CDLL(library).edgemem_next_session(ctypes.c_int64(threads), int(exact))
    return ort.InferenceSession(onnx.ModelProto.SerializeToString(model), options, ["CPUExecutionProvider"])


def int4_tensor(name: str, values: Array) -> onnx.TensorProto:
    """Integers from -8 to 7 as ONNX packs them: two to a byte, the first one in its low half."""
    nibbles = (values.reshape(-1).astype(np.int16) & 15).astype(np.uint8)
    packed = nibbles[::2] | np.pad(nibbles[1::2], (0, nibbles.size % 2)) << 4
    return onnx.TensorProto(name=name, data_type=TensorProto.INT4, dims=values.shape, raw_data=packed.tobytes())


def run(session: ort.InferenceSession, inputs: Mapping[str, Array]) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    fed = {name: value for name, value in inputs.items() if value is not None}
    return dict(zip(names, session.run(names, fed), strict=True))


def tables(call: Call) -> Array:
    """Cosines and sines of every step, ``[B, T, 2R]``."""
    steps = call.position[:, None] + np.arange(call.q.shape[2])
    turned = np.array([[angles(step, call.phases) for step in row] for row in steps]).reshape(*steps.shape, -1)
    return np.concatenate([np.cos(turned)] * 2 + [np.sin(turned)] * 2, axis=-1).astype(np.float32)


def to_positions(x: Array, call: Call) -> Array:
    """Queries or keys ``[B, H, T, D]`` as a model gives them that rotates them itself."""
    out = x.copy()
    for b, t in np.ndindex(x.shape[0], x.shape[2]):
        out[b, :, t] = rotated(x[b, :, t], int(call.position[b]) + t, call)
    return out


def attention_inputs(call: Call, heads_first: bool) -> dict[str, Array]:
    """The operator's inputs, by name and in order."""
    q, k = (to_positions(x, call) if call.given == "rotated" else x for x in (call.q, call.k))
    inputs: dict[str, Any] = {"q": q, "k": k, "v": call.v}
    if not heads_first:
        packed = np.concatenate([q, k, call.v], axis=1).transpose(0, 2, 1, 3)
        inputs = {"q": packed.reshape(*packed.shape[:2], packed.shape[2] * packed.shape[3]), "k": None, "v": None}
    inputs |= {"position": call.position, "phases": call.phases}
    inputs |= {"tables": tables(call) if call.given == "tables" else None}
    inputs |= {"sink_logits": call.sink_logits, "bias": call.bias}
    for m in range(len(call.memories)):
        for tensor in tensors(call, m):
            inputs[f"{m}.{tensor}"] = call.states[f"{m}.{tensor}"]
        if m in call.parameters:
            inputs[f"{m}.parameter"] = call.parameters[m]
    return inputs


def attention_session(call: Call, heads_first: bool = False, threads: int = 1, **changed: Any) -> ort.InferenceSession:
    outputs: dict[str, Any] = {"read": np.float32}
    for m in range(len(call.memories)):
        for tensor in tensors(call, m):
            outputs[f"new.{m}.{tensor}"] = call.states[f"{m}.{tensor}"].dtype
    attributes: dict[str, Any] = {
        "memories": ",".join(call.memories),
        "heads": call.q.shape[1],
        "kv_heads": call.k.shape[1],
        "scale": float(call.scale),
        "softcap": float(call.softcap),
        "rotate": int(call.phases is not None and call.given != "rotated"),
        "rotary_start": call.rotary_start,
        "neighbours": int(call.neighbours),
        "by_slot": int(call.by_slot),
        "heads_first": int(heads_first),
        "window": call.window,
        **changed,
    }
    return session("MemoryAttention", attention_inputs(call, heads_first), outputs, threads, **attributes)


def attend(call: Call, heads_first: bool = False, threads: int = 1, **changed: Any) -> dict[str, Array]:
    """``read`` and the new states ``<index>.<tensor>`` that the operator returns."""
    made = attention_session(call, heads_first, threads, **changed)
    results = run(made, attention_inputs(call, heads_first))
    return {name.removeprefix("new."): value for name, value in results.items()}
