"""A whole graph is held to its bundle: the same tensors as declared, and the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgemem.adopt.session import Graph
from edgemem.bundle import Bundle
from edgemem.contract import Contract, InputSpec
from edgemem.contract.items import as_passed, items_of_steps, results_by_name
from edgemem.dtypes import element_type
from edgemem.errors import VerificationError
from edgemem.measure import Array, Measure, rounding_tolerance
from edgemem.runtimes.ort.engine import OrtSession
from edgemem.triton.ports import Port, Ports

_STEPS, _STREAMS = 48, 2


def compare_ports(file: Path, ports: Ports) -> None:
    """Hold the inputs and outputs of a written graph to what is declared.

    Raises:
        VerificationError: They differ; the first tensor is named.
    """
    graph = ir.load(file).graph
    states = ports.states
    _same("input", graph.inputs, (*ports.inputs, *(state.past for state in states)), ports.max_batch)
    _same("output", graph.outputs, (*ports.outputs, *(state.present for state in states)), ports.max_batch)


def _same(kind: str, found: Iterable[ir.Value], wanted: tuple[Port, ...], max_batch: int) -> None:
    have = {value.name: value for value in found}
    if have.keys() != {port.name for port in wanted}:
        raise VerificationError(f"the {kind}s of the whole graph are {sorted(map(str, have))}.")
    for port in wanted:
        value = have[port.name]
        assert value.shape is not None
        sizes = [size if isinstance(size, int) else -1 for size in value.shape]
        dims = [-1 if max_batch > 1 else sizes[0], *port.dims]
        if value.dtype != ir.DataType(port.onnx_dtype) or sizes != dims:
            raise VerificationError(f"{kind} {port.name} of the whole graph is {value.dtype} {sizes}, declared {dims}.")


def compare(bundle: Bundle, model: ir.Model, ports: Ports) -> None:
    """Stream random data through a whole graph in a loop by hand, and through the bundle.

    Raises:
        VerificationError: The outputs differ by more than rounding.
    """
    contract, generator = bundle.contract, np.random.default_rng(0)
    streams = _STREAMS if ports.max_batch > 1 else 1
    data = {spec.name: _random(spec, (streams, _STEPS * spec.takes, *spec.shape), generator) for spec in contract.data}
    held = {spec.name: _random(spec, (streams, *spec.shape), generator) for spec in contract.held}
    with OrtSession(bundle, device="cpu", threads=1, native=False) as session:
        stream = session.stream(streams, held=held or None)
        wanted = _joined(
            results_by_name(contract, stream.feed(as_passed(contract, part), "all")) for part in _steps(contract, data)
        )
    graph = Graph(model, "the whole graph", bundle.path)
    got = _joined(_by_hand(graph, contract, ports, data, held))
    measure = Measure(
        {name: value[:, :, None] for name, value in wanted.items()},
        rounding_tolerance(bundle.manifest.precision),
        lambda: None,
        bundle.manifest.precision.dtype,
    )
    for name, value in got.items():
        error = measure.error(name, value.reshape(wanted[name].shape)[:, :, None])
        if not (error <= measure.tolerance).all():
            raise VerificationError(
                f"{name} of the whole graph differs from the bundle's by {error.max():.1e} of its spread.",
                hint="This is a fault of edgemem: please report it.",
            )


def _by_hand(
    graph: Graph, contract: Contract, ports: Ports, data: dict[str, Array], held: dict[str, Array]
) -> Iterator[dict[str, Array]]:
    """The outputs of each step of a loop that passes states on, as any host would write it."""
    streams = len(data[contract.input.name])
    states = {s.past.name: np.repeat(s.initial[None], streams, 0) for s in ports.states}
    takes = {spec.name: spec.takes for spec in contract.data}
    for part in _steps(contract, data):
        given = {
            port.name: value.reshape(streams, *(takes[port.name] if n < 0 else n for n in port.dims))
            for port in ports.inputs
            for value in [part[port.name] if port.name in part else held[port.name]]
        }
        found = graph.run({**given, **states})
        states = {state.past.name: found[state.present.name] for state in ports.states}
        yield {port.name: found[port.name] for port in ports.outputs}


def _steps(contract: Contract, data: dict[str, Array]) -> Iterator[dict[str, Array]]:
    return (items_of_steps(contract, data, at, at + 1) for at in range(_STEPS))


def _joined(steps: Iterable[dict[str, Array]]) -> dict[str, Array]:
    """The outputs of all steps, one step behind the other, by name."""
    every = [{name: np.array(value) for name, value in step.items()} for step in steps]
    return {name: np.stack([step[name] for step in every], 1) for name in every[0]}


def _random(spec: InputSpec, shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Token ids, 0 and 1 for other integers, or standard normal values."""
    if not element_type(spec.dtype).is_float:
        return generator.integers(0, spec.vocab_size or 2, shape).astype(spec.dtype)
    return generator.standard_normal(shape).astype(spec.dtype)
