"""What is around a product is joined with it where nothing else needs what lies between."""

from __future__ import annotations

import re

import onnx_ir as ir
import pytest

from edgemem.export.passes.layers import join_layers
from edgemem.export.passes.sites import remove_dead

NORM = "edgemem.RMSNorm <eps: float = 0.5>"
PRODUCT = "edgemem.MatMul <transposed: int = 0>"


def joined(body: str, outputs: str = "float[1, 2, 4] y") -> list[tuple[str, list[str]]]:
    """The nodes of a graph after the pass: their operators and their inputs' names."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 20, "edgemem": 1]> '
        "g (float[1, 2, 4] x, float[1, 2, 4] r, float[4] n, float[4, 4] w, float[4, 8] u, float[4, 4] d) "
        f"=> ({outputs}) "
        f"<float[1, 2, 4] p> {{ {body} }}"
    )
    join_layers(model)
    model.graph.sort()
    remove_dead(model)
    return [(node.op_type, [value.name if value else "" for value in node.inputs]) for node in model.graph]


@pytest.mark.parametrize("terms", ["p, r", "r, p"])
def test_a_product_adds_the_residual_behind_it(terms):
    assert joined(f"p = {PRODUCT} (x, w) y = Add ({terms})") == [("MatMul", ["x", "w", "r"])]


@pytest.mark.parametrize("terms", ["p, n, r", "r, n, p"])
def test_it_adds_the_residual_of_a_norm_too_and_the_sum_goes_where_it_went(terms):
    nodes = joined(f"p = {PRODUCT} (x, w) m, s = {NORM} ({terms}) y = Add (m, s)")
    assert nodes == [("MatMul", ["x", "w", "r"]), ("RMSNorm", ["s", "n"]), ("Add", ["m", "s"])]


def test_a_norm_with_one_product_is_one_operator():
    assert joined(f"m = {NORM} (x, n) y = {PRODUCT} (m, w)") == [("NormMatMul", ["x", "n", "w"])]
    assert joined(f"m = {NORM} (x, n) y = {PRODUCT} (m, w, r)") == [("NormMatMul", ["x", "n", "w", "r"])]


MLP = f"m = {NORM} (x, n) a = {PRODUCT} (m, u) g = edgemem.SwiGLU (a) p = {PRODUCT} (g, d)"


def test_a_gated_mlp_with_its_residual_is_one_operator():
    assert joined(f"{MLP} y = Add (p, x)") == [("GatedMlp", ["x", "n", "u", "d"])]


def test_a_gated_mlp_with_another_residual_keeps_its_products():
    assert [kind for kind, _ in joined(f"{MLP} y = Add (p, r)")] == ["NormMatMul", "SwiGLU", "MatMul"]


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (f"p = {PRODUCT} (x, w) q = Add (p, r) y = Mul (q, p)", "float[1, 2, 4] y"),
        (f"p = {PRODUCT} (x, w) y = Add (p, r)", "float[1, 2, 4] y, float[1, 2, 4] p"),
        (f"m = {NORM} (x, n) q = {PRODUCT} (m, w) y = Mul (q, m)", "float[1, 2, 4] y"),
        (f"m, s = {NORM} (x, n, r) q = {PRODUCT} (m, w) y = Mul (q, s)", "float[1, 2, 4] y"),
    ],
)
def test_what_something_else_needs_stays(body, outputs):
    kinds = [kind for kind, _ in joined(body, outputs)]
    assert "NormMatMul" not in kinds
    assert sorted(kinds) == sorted(re.findall(r"= (?:edgemem\.)?([A-Z]\w+)", body))
