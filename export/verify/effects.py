"""Whether every state is carried: followed through the graphs, and tried in a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from edgemem.bundle import Bundle
from edgemem.contract import StateSpec, initial_state
from edgemem.dtypes import decode_bfloat16, encode_bfloat16
from edgemem.errors import VerificationError
from edgemem.export.verify.precision_check import check_counters
from edgemem.runtimes import Session, Stream


def check_graph(bundle: Bundle) -> None:
    """Follow every state through every graph: it must be an input, reach an output, and come out.

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


def check_probes(session: Session, data: np.ndarray[Any, Any]) -> None:
    """Run the stream warm; every state must have changed, and each alone must have an effect.

    Args:
        session: The bundle, opened.
        data: ``[B, T, ...]``: enough steps to fill the rings.

    Raises:
        VerificationError: A state kept its initial value, or no output depends on it.
    """
    contract = session.contract
    warm = session.stream(data.shape[0])
    warm.feed(data[:, :-3], outputs="none")
    unchanged = set(contract)
    for step in (-3, -2):  # a state may pass through its initial value, but not stay there
        warm.feed(data[:, step : step + 1], outputs="none")
        state, positions = warm.state(), warm.positions
        unchanged -= {
            spec for spec in unchanged if not np.array_equal(state[spec.name], initial_state(spec, warm.batch))
        }
    if unchanged:
        name = min(spec.name for spec in unchanged)
        raise VerificationError(
            f"state {name!r} still has its initial value after {data.shape[1] - 1} steps: it never changes."
        )
    baseline = _step(warm, data[:, -1:])
    for spec in contract:
        if spec.update == "replace" and spec.growing_axis is None and spec.shape == () and spec.dtype == "int64":
            continue  # a counter; whether it has an effect shows in the parity past the wrap
        probe = session.stream(data.shape[0])
        probe.load_state({**state, spec.name: _changed(state[spec.name], spec.dtype)}, positions)
        if _equal(baseline, _step(probe, data[:, -1:]), spec):
            raise VerificationError(
                f"state {spec.name!r} has no effect: neither the output nor another state depends on it.",
                hint="Remove it from the contract, or use it in forward().",
            )


def _step(stream: Stream, x: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    output = stream.step(x[:, 0]).copy()
    return {"": output, **stream.state()}


def _equal(a: Mapping[str, np.ndarray[Any, Any]], b: Mapping[str, np.ndarray[Any, Any]], probed: StateSpec) -> bool:
    """Whether nothing differs; an appended state may differ from itself, which says nothing."""
    return all(
        np.array_equal(a[name], b[name]) for name in a if not (name == probed.name and probed.update == "append")
    )


def _changed(value: np.ndarray[Any, Any], dtype: str) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        return encode_bfloat16(decode_bfloat16(value) * 1.5 + 0.25)
    if value.dtype == np.bool_:
        return np.asarray(~value)
    if value.dtype.kind == "f":
        return np.asarray(value * 1.5 + 0.25, dtype=value.dtype)
    return np.asarray(value + 1, dtype=value.dtype)
