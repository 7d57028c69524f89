"""The files to which a graph refers are found wherever the tensor is, and what is no graph is refused."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper

from edgemem.external_data import external_files


def external(name: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[300], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "8"), ("location", f"{name}.bin"), ("length", "1200")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def nested(name: str) -> onnx.NodeProto:
    """An If whose branches hold a Constant each."""
    branches = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node("Constant", [], [which], value=external(f"{name}.{which}"))], which, [], []
        )
        for which in ("then", "else")
    }
    return helper.make_node("If", ["c"], ["y"], **branches)


def test_every_place_of_a_tensor_is_looked_at() -> None:
    sparse = onnx.SparseTensorProto(values=external("values"), indices=external("indices"), dims=[9])
    several = helper.make_node("Other", [], ["z"])
    several.attribute.append(onnx.AttributeProto(name="a", tensors=[external("list")], sparse_tensors=[sparse]))
    graph = helper.make_graph(
        [nested("inner"), several], "g", [], [], [external("plain"), TensorProto(raw_data=b"\xff" * 300)]
    )
    function = helper.make_function("d", "f", [], [], [nested("function")], [helper.make_opsetid("", 20)])
    model = helper.make_model(graph, functions=[function], producer_name="location" * 40)
    names = [
        "plain",
        "list",
        "values",
        "indices",
        *(f"{a}.{b}" for a in ("inner", "function") for b in ("then", "else")),
    ]
    assert external_files(model.SerializeToString()) == {f"{name}.bin" for name in names}


def test_a_graph_without_external_data_refers_to_nothing() -> None:
    assert external_files(helper.make_model(helper.make_graph([], "g", [], [])).SerializeToString()) == set()
    assert external_files(b"") == set()


@pytest.mark.parametrize("content", [b"step", b"\x3a\x05ab", b"\x3a", b"\xff" * 20, b"\x09abc", b"\x3a\x02\x2a\x05"])
def test_what_is_no_protocol_buffer_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"field|integer|cut"):
        external_files(content)
