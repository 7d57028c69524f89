"""The native form of a graph: edgemem's operators where they can stand, the same inputs and outputs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from edgemem.export import from_config
from edgemem.export.graph import export_graph
from edgemem.export.passes.gates import join_gates
from edgemem.export.passes.native_form import native_form
from edgemem.export.passes.norms import divide_by_roots, join_norms
from edgemem.export.passes.reshapes import drop_reshapes
from edgemem.export.passes.rotations import join_rotations
from edgemem.export.passes.sites import remove_dead, remove_sites
from edgemem.models import DecoderConfig
from edgemem.runtimes import native

LAYERS = [
    [{"type": "sinks", "slots": 2}, {"type": "window", "window": 6}, {"type": "cumulative"}, {"type": "geometric"}],
    [
        {"type": "window", "window": 6},
        {"type": "gated_delta"},
        {"type": "linear_attention"},
        {"type": "moving_average", "window": 5},
    ],
    [{"type": "gated_delta"}, {"type": "exact", "slots": 2}],
]


@pytest.fixture(scope="module")
def traced():
    """Layers with memories that operators have."""
    config = DecoderConfig(d_model=16, layers=3, heads=4, kv_heads=2, vocab_size=20, memory=LAYERS)
    module = from_config(config, "three layers").module
    return export_graph(module, module.contract())


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph if node.domain == "edgemem")


def graph(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 20]> {text}')


def test_a_softmax_whose_memories_it_has_is_one_operator_and_so_is_a_matrix(traced):
    form = native_form(traced)
    assert operators(form) == {
        **{"MemoryAttention": 3, "GatedDelta": 2, "LinearAttention": 1, "GatedMlp": 3, "NormMatMul": 2, "MatMul": 7},
        "RMSNorm": 2,  # which several products of the gated delta rule take
    }
    attention = next(node for node in form.graph if node.op_type == "MemoryAttention")
    assert attention.attributes["memories"].as_string() == "window,sinks,cumulative,geometric"
    states = [value.name.removeprefix("past.0.") for value in attention.inputs if value and value.name[:4] == "past"]
    assert states == [
        *("window.k", "window.v", "sinks.k", "sinks.v", "cumulative.mean", "cumulative.carry"),
        *("geometric.sum", "geometric.mass"),
    ]


def test_both_forms_take_and_give_the_same(traced):
    standard = traced.clone()
    remove_sites(standard)
    for form in (native_form(traced), standard):
        assert [value.name for value in form.graph.inputs] == [value.name for value in traced.graph.inputs]
        assert [value.name for value in form.graph.outputs] == [value.name for value in traced.graph.outputs]
        assert all(value.producer() is not None for value in form.graph.outputs)
    assert not operators(standard)
    assert operators(traced) == {"Begin": 6, "End": 6}  # the marks, of which there is a copy in neither form


def inputs_of(session: onnxruntime.InferenceSession, batch: int, time: int) -> dict[str, np.ndarray]:
    random, given = np.random.default_rng(batch + time), {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else {"batch": batch}.get(size, time) for size in value.shape]
        if value.type == "tensor(int64)":
            highest = 50 if value.name == "position" else 20 if value.name == "tokens" else time
            given[value.name] = random.integers(0, highest, shape)
        else:
            given[value.name] = np.abs(random.normal(size=shape)).astype(np.float32)  # a mass is above 0
    return given


def opened(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(native.library()))
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def test_both_forms_compute_the_same(traced):
    if native.library() is None:
        pytest.skip(native.why())
    standard = traced.clone()
    remove_sites(standard)
    forms = [opened(native_form(traced)), opened(standard)]
    for batch, time in ((1, 1), (1, 5), (3, 2)):
        given = inputs_of(forms[0], batch, time)
        for value, got, want in zip(forms[1].get_outputs(), *(form.run(None, given) for form in forms), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=value.name)


@pytest.mark.parametrize("memory", [{"type": "window", "window": 4}, {"type": "gated_delta"}])
def test_heads_that_are_wider_than_operators_take_stay_in_standard_operators(memory):
    config = DecoderConfig(d_model=16, layers=1, heads=1, head_dim=514, vocab_size=20, memory=[memory])
    module = from_config(config, "wide").module
    assert not {"Begin", "End"} & operators(export_graph(module, module.contract())).keys()


def test_a_graph_without_a_place_for_attention_has_no_native_form():
    assert native_form(graph("g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }")) is None


NORM = """g (float[B,T,4] x, float[B,T,4] d, float[4] w) => (float[B,T,4] y, float[B,T,4] h)
<float two = {2}, float eps = {1e-5}, int64[1] last = {-1}, float[4] w = {1,2,3,4}> {
    h = Add(x, d)
    s = Pow(h, two)
    m = ReduceMean<keepdims = 1>(s, last)
    e = Add(m, eps)
    r = Sqrt(e)
    %s
}"""
QUOTIENT = "q = Div(h, r) y = Mul(q, w)"
PRODUCT = "i = Reciprocal(r) q = Mul(h, i) y = Mul(w, q)"


def shaped(text: str) -> ir.Model:
    """A graph that remembers the shapes of its trace."""
    model = graph(text)
    for node in model.graph:
        for value in node.outputs:
            value.meta["shape"] = value.shape or ir.Shape(["B", "T", 4])
    return model


@pytest.mark.parametrize("way", [QUOTIENT, PRODUCT])
def test_a_norm_and_the_sum_before_it_are_one_operator(way):
    model = shaped(NORM % way)
    divide_by_roots(model)
    assert "Reciprocal" not in {node.op_type for node in model.graph}
    join_norms(model)
    remove_dead(model)
    norm = next(node for node in model.graph if node.op_type == "RMSNorm")
    assert norm.attributes["eps"].as_float() == pytest.approx(1e-5)
    assert len(norm.inputs) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("h = Add(x, d)", "h = Add(x, w)"),  # a bias, not the stream's shape
        ("last = {-1}", "last = {1}"),  # the mean over another axis
        ("two = {2}", "two = {3}"),
    ],
)
def test_what_only_looks_like_a_norm_of_a_sum_is_left(old, new):
    model = shaped((NORM % QUOTIENT).replace(old, new))
    join_norms(model)
    norms = [node for node in model.graph if node.op_type == "RMSNorm"]
    assert not norms or len(norms[0].inputs) == 2


GATE = """g (float[B,T,8] x, float[B,T,4] u) => (float[B,T,4] y) {
    a, b = Split<axis = %d, num_outputs = 2>(x)
    s = Sigmoid(a)
    p = Mul(a, s)
    y = Mul(p, %s)
}"""


@pytest.mark.parametrize(
    ("axis", "up", "inputs"), [(2, "b", ["x"]), (-1, "b", ["x"]), (2, "u", ["a", "u"]), (1, "b", ["a", "b"])]
)
def test_a_gate_is_one_operator_and_takes_the_whole_product_where_it_is_split_in_halves(axis, up, inputs):
    model = shaped(GATE % (axis, up))
    join_gates(model)
    gate = next(node for node in model.graph if node.op_type == "SwiGLU")
    assert [value.name for value in gate.inputs] == inputs


def test_a_reshape_to_the_shape_that_the_data_had_is_left_out():
    text = """g (float[B,T,4] x, int64[4] apart, int64[3] flat) => (float[B,T,4] y) {
        a = Reshape(x, apart)
        b = Reshape(a, flat)
        y = Relu(b)
    }"""
    model = graph(text)
    shapes = {"a": ["B", "T", 2, 2], "b": ["B", "T", 4]}
    for node in model.graph:
        node.outputs[0].meta["shape"] = ir.Shape(shapes.get(node.outputs[0].name, []))
    drop_reshapes(model)
    assert next(node for node in model.graph if node.op_type == "Relu").inputs[0].name == "x"


ROTARY = """g (float[B,T,8] q, float[B,T,4] k, float[B,T,4] v, int64[B] position, float[B,T,4] c, float[B,T,4] s,
    float[B,1,6,4] ring_k, float[B,1,6,4] ring_v) => (float[B,T,8] read, float[B,1,T,4] new_k, float[B,1,T,4] new_v)
<int64[1] one = {1}, int64[1] three = {3}, int64[1] zero = {0}, int64[1] half = {2},
 int64[1] end = {9223372036854775807}, int64[4] heads = {0,0,-1,4}> {
    cos = Unsqueeze(c, one)
    sin = Unsqueeze(s, one)
    q4 = Reshape(q, heads)
    qt = Transpose<perm = [0,2,1,3]>(q4)
    q1 = Slice(qt, zero, half, three, one)
    q2 = Slice(qt, half, end, three, one)
    qn = Neg(q2)
    qc = Concat<axis = %d>(%s)
    qa = Mul(qt, cos)
    qb = Mul(qc, sin)
    qr = Add(qa, qb)
    k4 = Reshape(k, heads)
    kt = Transpose<perm = [0,2,1,3]>(k4)
    k1 = Slice(kt, zero, half, three, one)
    k2 = Slice(kt, half, end, three, one)
    kn = Neg(k2)
    kc = Concat<axis = -1>(kn, k1)
    ka = Mul(kt, cos)
    kb = Mul(sin, kc)
    kr = Add(kb, ka)
    v4 = Reshape(v, heads)
    vt = Transpose<perm = [0,2,1,3]>(v4)
    read, new_k, new_v = edgemem.MemoryAttention<heads_first = 1, rotate = 0>(
        qr, kr, vt, position, , , , , ring_k, ring_v)
}"""


def rotary(axis: int, parts: str) -> ir.Model:
    text = ROTARY % (axis, parts)
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 20, "edgemem": 1]> {text}')
    for node in model.graph:
        for value in node.outputs:
            heads = 2 if value.name[0] == "q" else 1
            value.meta["shape"] = ir.Shape(["B", heads, "T", 2 if value.name[1:] in ("1", "2") else 4])
    for value in model.graph.inputs:
        value.meta["shape"] = value.shape
    return model


def test_rotary_positions_move_into_the_operator_with_the_heads():
    model = rotary(3, "qn, q1")
    join_rotations(model)
    remove_dead(model)
    (attention,) = (node for node in model.graph if node.domain == "edgemem")
    assert [value and value.name for value in attention.inputs] == [
        *("q", "k", "v", "position", None, "c.s", None, None, "ring_k", "ring_v")
    ]
    assert [value.name for value in attention.outputs] == ["read", "new_k", "new_v"]
    assert [node.op_type for node in model.graph] == ["Concat", "MemoryAttention"]
    assert (attention.attributes["heads_first"].as_int(), attention.attributes["rotate"].as_int()) == (0, 1)


@pytest.mark.parametrize(("axis", "parts"), [(3, "q1, qn"), (3, "qn, q2"), (2, "qn, q1")])
def test_another_turn_stays_where_it_is(axis, parts):
    model = rotary(axis, parts)
    join_rotations(model)
    (attention,) = (node for node in model.graph if node.domain == "edgemem")
    assert attention.inputs[0].name == "qr"
