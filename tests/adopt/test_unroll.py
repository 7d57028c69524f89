"""One step of an LSTM or GRU as matrix products equals the operator; longer sequences keep it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemem.adopt import AdoptOptions, adopt
from edgemem.adopt.session import Graph
from edgemem.adopt.unroll import unroll
from edgemem.errors import ExportError

INPUTS, HIDDEN, BATCH = 3, 4, 2
HERE = Path(".")


def recurrent(kind, *, steps=1, opset=17, directions=1, bias=True, **attributes):
    """A graph of one operator with random weights, whose states are inputs and outputs."""
    generator = np.random.default_rng(0)
    gates = 4 if kind == "LSTM" else 3
    shapes = {"W": (directions, gates * HIDDEN, INPUTS), "R": (directions, gates * HIDDEN, HIDDEN)}
    shapes |= {"B": (directions, 2 * gates * HIDDEN)} if bias else {}
    weights = [numpy_helper.from_array(generator.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    node = helper.make_node(
        kind,
        ["x", "W", "R", "B" if bias else "", "", *states],
        ["y", *(f"{name}n" for name in states)],
        name="cell",
        hidden_size=HIDDEN,
        **attributes,
    )

    def declared(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    state = [directions, BATCH, HIDDEN]
    graph = helper.make_graph(
        [node],
        "g",
        [declared("x", [steps, BATCH, INPUTS]), *(declared(name, state) for name in states)],
        [declared("y", [steps, directions, BATCH, HIDDEN]), *(declared(f"{name}n", state) for name in states)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def probe(kind, steps=1, directions=1):
    generator = np.random.default_rng(1)
    state = {name: generator.standard_normal((directions, BATCH, HIDDEN)).astype(np.float32) for name in "hc"}
    x = generator.standard_normal((steps, BATCH, INPUTS)).astype(np.float32)
    return {"x": x, **(state if kind == "LSTM" else {"h": state["h"]})}


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("GRU", {"linear_before_reset": 0})],
)
def test_one_step_as_products_equals_the_operator(kind, attributes, bias, opset):
    model = ir.from_proto(recurrent(kind, opset=opset, bias=bias, **attributes))
    given = probe(kind)
    wanted = Graph(model, "before", HERE).run(given)
    assert unroll(model, [given], HERE) == 1
    assert kind not in {node.op_type for node in model.graph}
    got = Graph(model, "after", HERE).run(given)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"steps": 2}, {"steps": 2}),
        ({"directions": 2, "direction": "bidirectional"}, {"directions": 2}),
        ({"direction": "reverse"}, {}),
        ({"activations": ["Sigmoid", "Relu", "Tanh"]}, {}),
        ({"clip": 1.0}, {}),
    ],
)
def test_other_operators_stay(options, sizes):
    model = ir.from_proto(recurrent("LSTM", **options))
    assert unroll(model, [probe("LSTM", **sizes)], HERE) == 0
    assert [node.op_type for node in model.graph] == ["LSTM"]


def test_a_bundle_is_unrolled_when_asked(tmp_path):
    made = recurrent("GRU", linear_before_reset=1)
    onnx.save(made, tmp_path / "gru.onnx")
    options = {"outputs": ("y",), "steps": 20}
    plain = adopt(tmp_path / "gru.onnx", tmp_path / "plain", AdoptOptions(**options))
    assert plain.manifest.verification["largest_difference"] == 0
    bundle = adopt(tmp_path / "gru.onnx", tmp_path / "unrolled", AdoptOptions(**options, unroll=True))
    assert bundle.manifest.verification["largest_difference"] < 1e-5
    assert "GRU" not in {node.op_type for node in ir.load(bundle.file("model.onnx")).graph}


def test_unroll_does_not_hide_a_fault(tmp_path, monkeypatch):
    onnx.save(recurrent("GRU", linear_before_reset=1), tmp_path / "gru.onnx")

    def broken(model, probes, folder):
        next(iter(model.graph.initializers.values())).const_value = ir.tensor(np.zeros((1, 12, INPUTS), np.float32))
        return 1

    monkeypatch.setattr("edgemem.adopt.adopter.unroll", broken)
    with pytest.raises(ExportError, match="y differs from the original"):
        adopt(tmp_path / "gru.onnx", tmp_path / "out", AdoptOptions(outputs=("y",), steps=20, unroll=True))
    assert not (tmp_path / "out").exists()
