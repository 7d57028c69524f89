"""A decoder's layer in few nodes: what a residual is added to, a norm with its product, and a whole gated MLP.

``y = x + W_o · read``, ``q, k, v = W · RMSNorm(x)`` and ``y = x + W_d · SwiGLU(W_u · RMSNorm(x))``. In a small model
the engine's work for a node takes longer than what the node computes.
"""

from __future__ import annotations

import onnx_ir as ir

from edgemem.export.passes.gates import GATE
from edgemem.export.passes.native_products import BIAS, PRODUCT, SCALE
from edgemem.export.passes.norms import NORM, same_shape
from edgemem.export.passes.values import input_of, replace_value, used_once, without_absent_end
from edgemem.memories.site import DOMAIN

NORM_PRODUCT = "NormMatMul"
MLP = "GatedMlp"


def join_layers(model: ir.Model) -> None:
    """Put products with what is around them.

    Before: norms, gates and products are operators of edgemem.
    After: what was joined is unused. The nodes are in no order.
    """
    graph = model.graph
    for node in list(graph):
        if node.op_type == NORM and len(node.inputs) == 3:
            _add_residual_of_norm(graph, node)
        elif node.op_type == "Add" and not node.domain:
            _add_residual(node)
    for join in (_join_mlp, _join_norm):
        for node in list(graph):
            if node.op_type == PRODUCT and node.domain == DOMAIN:
                join(graph, node)


def _own(value: ir.Value | None, operator: str) -> ir.Node | None:
    """The operator of edgemem that makes a value, where one node uses that."""
    node = value.producer() if value is not None and used_once(value) else None
    return node if node is not None and node.domain == DOMAIN and node.op_type == operator else None


def _bare_product(value: ir.Value | None) -> ir.Node | None:
    """The product that makes a value and adds nothing yet."""
    product = _own(value, PRODUCT)
    return product if product is not None and input_of(product, BIAS) is None else None


def _add_to(product: ir.Node, residual: ir.Value | None) -> None:
    product.resize_inputs(max(len(product.inputs), BIAS + 1))
    product.replace_input_with(BIAS, residual)


def _add_residual_of_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """``RMSNorm(x + a · w)`` with its sum: the product adds ``x``, and the norm takes the sum."""
    x, weight, delta = norm.inputs
    for product, residual in ((_bare_product(delta), x), (_bare_product(x), delta)):
        if product is None:
            continue
        _add_to(product, residual)
        alone = ir.node(NORM, [product.outputs[0], weight], norm.attributes, domain=DOMAIN, version=1)
        graph.insert_before(norm, alone)
        replace_value(norm.outputs[0], alone.outputs[0])
        if len(norm.outputs) > 1:
            replace_value(norm.outputs[1], product.outputs[0])
        return


def _add_residual(adding: ir.Node) -> None:
    """``x + a · w``: the product adds ``x``."""
    for product, residual in zip(map(_bare_product, adding.inputs), reversed(adding.inputs), strict=True):
        if product is not None and same_shape(residual, product.outputs[0]):
            _add_to(product, residual)
            replace_value(adding.outputs[0], product.outputs[0])
            return


def _join_mlp(graph: ir.Graph, down: ir.Node) -> None:
    gate = _own(down.inputs[0], GATE)
    up = _bare_product(gate.inputs[0]) if gate is not None and len(gate.inputs) == 1 else None
    norm = _plain_norm(up.inputs[0]) if up is not None else None
    if norm is None or up is None or input_of(down, BIAS) is not norm.inputs[0]:
        return
    attributes = {
        "eps": norm.attributes["eps"].as_float(),
        "gate_up_transposed": up.attributes["transposed"].as_int(),
        "down_transposed": down.attributes["transposed"].as_int(),
    }
    matrices = [up.inputs[1], down.inputs[1], input_of(up, SCALE), input_of(down, SCALE)]
    inputs = without_absent_end([*norm.inputs, *matrices])
    _replace(graph, down, ir.node(MLP, inputs, attributes, domain=DOMAIN, version=1, num_outputs=3))


def _join_norm(graph: ir.Graph, product: ir.Node) -> None:
    norm = _plain_norm(product.inputs[0])
    if norm is None:
        return
    attributes = {"eps": norm.attributes["eps"].as_float(), "transposed": product.attributes["transposed"].as_int()}
    inputs = [*norm.inputs, *product.inputs[1:]]
    _replace(graph, product, ir.node(NORM_PRODUCT, inputs, attributes, domain=DOMAIN, version=1, num_outputs=2))


def _plain_norm(value: ir.Value | None) -> ir.Node | None:
    """The norm of one tensor that makes a value, and whose sum nothing uses."""
    norm = _own(value, NORM)
    return norm if norm is not None and len(norm.inputs) == 2 else None


def _replace(graph: ir.Graph, old: ir.Node, new: ir.Node) -> None:
    for number, output in enumerate(new.outputs[1:], 1):
        output.name = f"{old.outputs[0].name}.between.{number}"
    graph.insert_before(old, new)
    replace_value(old.outputs[0], new.outputs[0])
