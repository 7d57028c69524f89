"""Remove torch's stack traces from a traced graph."""

from __future__ import annotations

import onnx_ir as ir


def strip_traces(model: ir.Model) -> None:
    """Remove the stack traces that torch attaches to every node: they hold local paths, and are 90 % of the file.

    Before: any traced graph.
    After: no metadata and no documentation strings; nothing else changes.

    Args:
        model: The graph; changed in place.
    """
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
        for value in (*graph.inputs, *graph.initializers.values()):
            value.metadata_props.clear()
