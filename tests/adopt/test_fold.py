"""What follows from constants and sizes becomes constant; branches that are never taken disappear."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgemem.adopt.fold import fold
from edgemem.adopt.session import Graph
from tests.adopt.models import RATE, model

CONDITION_ON_SHAPE = """
m (float[batch, n] x, float[batch, 1] s) => (float[batch, k] y, float[batch, 1] sn) {
    one = Constant <value = int64 {1}> ()
    shape = Shape(x)
    size = Gather(shape, one)
    wanted = Constant <value = int64 {4}> ()
    is_wanted = Equal(size, wanted)
    y = If (is_wanted) <
        then_branch = a () => (float[batch, k] p) { p = Tanh(x) },
        else_branch = b () => (float[batch, k] q) { q = Relu(x) }
    >
    sn = Identity(s)
}
"""
CONDITION_ON_DATA = """
m (float[batch, n] x, float[batch, 1] s) => (float[batch, n] y, float[batch, 1] sn) {
    sum = ReduceSum<keepdims = 0>(x)
    zero = Constant <value = float {0.0}> ()
    is_up = Greater(sum, zero)
    y = If (is_up) <
        then_branch = a () => (float[batch, n] p) { p = Tanh(x) },
        else_branch = b () => (float[batch, n] q) { q = Relu(x) }
    >
    sn = Identity(s)
}
"""


def folded(text, probes, fixed=None):
    made = ir.from_proto(model(text))
    return made, fold(made, fixed or {}, probes, Path("."))


def ifs(made):
    return [node for graph in made.graphs() for node in graph if node.op_type == "If"]


def probe(batch, n=4):
    return {"x": np.ones((batch, n), np.float32), "s": np.zeros((batch, 1), np.float32)}


def test_a_fixed_input_and_the_branch_that_it_never_takes_are_gone():
    data = {"input": np.arange(6, dtype=np.float32).reshape(1, 6), "state": np.ones((2, 1, 3), np.float32)}
    before, after = folded(RATE, [data], {"sr": np.array(16000)})
    assert not ifs(after)
    assert [value.name for value in after.graph.inputs] == ["input", "state"]
    assert all(use.node.graph is after.graph for node in after.graph for out in node.outputs for use in out.uses())
    wanted = Graph(before, "before", Path(".")).run({**data, "sr": np.array(16000)})
    got = Graph(after, "after", Path(".")).run(data)
    for name in wanted:
        np.testing.assert_array_equal(got[name], wanted[name])
    assert ifs(before), "the original is unchanged"


def test_a_condition_on_sizes_is_constant_where_all_probes_agree():
    _, after = folded(CONDITION_ON_SHAPE, [probe(1), probe(2)])
    assert not ifs(after)
    assert "Tanh" in {node.op_type for node in after.graph}
    got = Graph(after, "after", Path(".")).run(probe(3))
    np.testing.assert_array_equal(got["y"], np.tanh(np.ones((3, 4), np.float32)))


def test_a_condition_on_sizes_stays_where_probes_differ():
    _, after = folded(CONDITION_ON_SHAPE, [probe(1, 4), probe(1, 5)])
    assert len(ifs(after)) == 1


@pytest.mark.parametrize("sign", [1, -1])
def test_a_condition_on_data_stays(sign):
    _, after = folded(CONDITION_ON_DATA, [probe(1), probe(2)])
    assert len(ifs(after)) == 1
    data = {"x": sign * np.ones((1, 4), np.float32), "s": np.zeros((1, 1), np.float32)}
    wanted = np.tanh(data["x"]) if sign > 0 else np.zeros((1, 4))
    np.testing.assert_array_equal(Graph(after, "after", Path(".")).run(data)["y"], wanted)


SIZED_BY_DATA = """
m (float[batch, n] x, float[batch, 1] s) => (float[batch, n] y, float[batch, 1] sn) {
    zero = Constant <value = float {0.0}> ()
    is_up = Greater(x, zero)
    places = NonZero(is_up)
    shape = Shape(places)
    one = Constant <value = int64 {1}> ()
    count = Gather(shape, one)
    many = Constant <value = int64 {2}> ()
    is_many = Greater(count, many)
    y = If (is_many) <
        then_branch = a () => (float[batch, n] p) { p = Tanh(x) },
        else_branch = b () => (float[batch, n] q) { q = Relu(x) }
    >
    sn = Identity(s)
}
"""


def test_a_size_that_follows_from_data_is_no_constant():
    _, after = folded(SIZED_BY_DATA, [probe(1), probe(1)])
    assert len(ifs(after)) == 1
    data = {"x": -np.ones((1, 4), np.float32), "s": np.zeros((1, 1), np.float32)}
    np.testing.assert_array_equal(Graph(after, "after", Path(".")).run(data)["y"], np.zeros((1, 4)))


MOVED_WEIGHT = """
m (float[batch, 2] x, float[batch, 1] s) => (float[batch, 2] y, float[batch, 1] sn)
<float[2, 2] w = {1, 2, 3, 4}> {
    turned = Transpose(w)
    y = MatMul(x, turned)
    twice = Add(w, w)
    z = MatMul(y, twice)
    sum = ReduceSum<keepdims = 1>(z)
    sn = Add(s, sum)
}
"""


def test_a_weight_that_is_only_moved_is_stored_so_and_one_that_is_computed_is_not():
    before, after = folded(MOVED_WEIGHT, [probe(1, 2), probe(2, 2)])
    assert [node.op_type for node in after.graph] == ["MatMul", "Add", "MatMul", "ReduceSum", "Add"]
    wanted, got = (Graph(each, "graph", Path(".")).run(probe(1, 2)) for each in (before, after))
    np.testing.assert_array_equal(got["sn"], wanted["sn"])
