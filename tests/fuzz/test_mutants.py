"""Every kind of mutant of a graph is noticed by the check. ``make mutants`` runs all of them on five models."""

from __future__ import annotations

import onnx
import pytest

from edgemem.export import from_module
from tests.export.modules import Gru
from tests.fuzz.mutants import SOURCES, Trial, mutants, run


@pytest.fixture(scope="module")
def gru(tmp_path_factory):
    return Trial(from_module(Gru().eval(), "gru"), tmp_path_factory.mktemp("mutants"))


def test_an_unchanged_graph_passes(gru):
    assert gru.outcome(gru.model) == "no effect"


def test_a_state_that_is_changed_on_its_way_out_is_noticed(gru):
    for what in ("Neg", "Tanh"):
        mutant = onnx.ModelProto.FromString(gru.model.SerializeToString())
        for node in mutant.graph.node:
            names = ["inner" if name == "present.0.gru.h" else name for name in node.output]
            del node.output[:]
            node.output.extend(names)
        mutant.graph.node.append(onnx.helper.make_node(what, ["inner"], ["present.0.gru.h"]))
        assert gru.outcome(mutant) == "found"


def test_mutants_change_operators_inputs_and_constants(gru):
    graph = onnx.parser.parse_graph(
        "g (float[2] x) => (float[2] y) <float[1] a = {2}> { b = Constant<value = float[1] {3}>() "
        "c = Sub(x, a) y = Mul(c, b) }"
    )
    model = onnx.helper.make_model(graph)
    assert [name for name, _ in mutants(model)] == [
        "Constant b: x 1.01",
        "Constant b: + 0.01",
        "Sub c: Add",
        "Sub c: inputs swapped",
        "Mul y: Add",
        "constant a: x 1.01",
        "constant a: + 0.01",
    ]


@pytest.mark.long
@pytest.mark.parametrize("name", SOURCES)
def test_hardly_any_mutant_of_a_model_is_missed(name):
    counts = run(name, SOURCES[name]())
    assert counts["found"] > 0
    assert counts["missed"] <= 1
