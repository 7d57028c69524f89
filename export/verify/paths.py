"""Whether every state has a path through the graph: from an input to an output."""

from __future__ import annotations

import onnx_ir as ir

from edgemem.bundle import Bundle
from edgemem.errors import VerificationError
from edgemem.export.verify.counters import check_counters


def check_paths(bundle: Bundle) -> None:
    """Follow every state through every graph: it must be an input that is used, and an output that is computed.

    Raises:
        VerificationError: A state is missing from the graph, or nothing depends on it.
    """
    contract = bundle.contract
    for graph in bundle.manifest.graphs:
        model = ir.load(bundle.file(graph.file))
        inputs = {value.name: value for value in model.graph.inputs}
        outputs = {value.name for value in model.graph.outputs}
        if missing := [name for name in contract.graph_inputs if name not in inputs]:
            raise VerificationError(f"{graph.file}: the input {missing[0]} was dropped from the graph.")
        if missing := [name for name in contract.graph_outputs if name not in outputs]:
            raise VerificationError(f"{graph.file}: the output {missing[0]} is not in the graph.")
        for state in contract:
            if not inputs[state.input_name].uses():
                raise VerificationError(
                    f"{graph.file}: nothing reads {state.input_name}: the model ignores its past.",
                    hint="The module must use the state that it is given, not one that it keeps as an attribute.",
                )
        for state in contract:
            value = next(value for value in model.graph.outputs if value.name == state.output_name)
            if value.producer() is None:
                raise VerificationError(
                    f"{graph.file}: {state.output_name} is an input or a constant: the state never changes."
                )
        check_counters(model, graph.file)
