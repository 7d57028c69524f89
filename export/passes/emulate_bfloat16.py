"""Compute bfloat16 without kernels for it.

ONNX Runtime's CPU provider casts to and from bfloat16, and has few other operators for it. So every operator computes
in float32, and its output is rounded to bfloat16 and back. These are the numbers of a bfloat16 kernel that accumulates
in float32, as GPUs do.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from edgemem.errors import ExportError

_DECIDED_BY_ATTRIBUTE = ("Cast", "Constant", "ConstantOfShape")
_WIDE = ".float32"


def emulate_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a graph whose operators compute in float32 and round to bfloat16.

    Before: any graph.
    After: no operator except casts computes in bfloat16; inputs and outputs keep their names and dtypes.

    Args:
        model: The graph, which does not change. Weights may be external.

    Raises:
        ExportError: A loop inside the graph computes in bfloat16.
    """
    typed = onnx.shape_inference.infer_shapes(model)
    graph = typed.graph
    narrow = {
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.BFLOAT16
    }
    narrow |= {tensor.name for tensor in graph.initializer if tensor.data_type == TensorProto.BFLOAT16}
    outputs = {value.name for value in graph.output}
    nodes: list[onnx.NodeProto] = []

    def cast(source: str, target: str, dtype: int) -> None:
        nodes.append(helper.make_node("Cast", [source], [target], to=dtype))

    for name in (*(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)):
        if name in narrow:
            cast(name, name + _WIDE, TensorProto.FLOAT)
    for node in graph.node:
        if any(attribute.HasField("g") and _computes_narrow(attribute.g) for attribute in node.attribute):
            raise ExportError(f"a {node.op_type} computes in bfloat16, which cannot be emulated: use fp16.")
        made = onnx.NodeProto()
        made.CopyFrom(node)
        del made.input[:]
        made.input.extend(name + _WIDE if name in narrow else name for name in node.input)
        nodes.append(made)
        for index, name in enumerate(node.output):
            if name not in narrow:
                continue
            if node.op_type not in _DECIDED_BY_ATTRIBUTE:
                made.output[index] = f"{name}.unrounded"
                cast(made.output[index], name, TensorProto.BFLOAT16)
            cast(name, name + _WIDE, TensorProto.FLOAT)
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    del twin.graph.node[:]
    twin.graph.node.extend(nodes)
    del twin.graph.value_info[:]
    assert outputs <= {name for node in nodes for name in node.output} | {value.name for value in graph.input}
    return twin


def _computes_narrow(graph: onnx.GraphProto) -> bool:
    tensors = (*graph.value_info, *graph.input, *graph.output)
    return any(value.type.tensor_type.elem_type == TensorProto.BFLOAT16 for value in tensors)
