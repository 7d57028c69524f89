"""From a torch module to an ONNX graph with explicit state: the one place that calls torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from edgemem.contract import OUTPUT_INDICES, POSITION, Contract, StateSpec
from edgemem.errors import ExportError
from edgemem.protocol import example_input, initial_tensors, takes_output_indices
from edgemem.streaming.adapter import module_inside

OPSET = 20
_BATCH, _TIME, _OUTPUTS, _LENGTH = "batch", "time", "outputs", "length"


class _Flat(nn.Module):
    """The module with its inputs and outputs in the contract's order instead of in dictionaries."""

    def __init__(self, module: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.module = module
        self._contract = contract

    def forward(self, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        extra = len(rest) - len(self._contract.states)
        names = self._contract.graph_inputs[1 : 1 + extra]
        given = dict(zip(names, rest[:extra], strict=True))
        state = {spec.name: value for spec, value in zip(self._contract, rest[extra:], strict=True)}
        if POSITION in given:
            state[POSITION] = given[POSITION]
        if OUTPUT_INDICES in given:
            output, new = self.module(x, state, output_indices=given[OUTPUT_INDICES])
        else:
            output, new = self.module(x, state)
        return (output, *(new[spec.name] for spec in self._contract))


class Sealed(nn.Module):
    """A module whose rings are written inside the graph: every state whole in, whole out, the position too.

    For hosts that know no other way. Same weights, same numbers; every step copies the rings.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._open: Contract = module.contract()  # type: ignore[operator]

    def contract(self) -> Contract:
        """The module's contract with ``replace`` everywhere and, where it has a position, a state of that name."""
        states = [replace(spec, update="replace") for spec in self._open]
        if self._open.position == "input":
            states.append(StateSpec(POSITION, (), "int64"))
        return replace(self._open, states=tuple(states), position="none", output_indices=False)

    def forward(
        self, x: Tensor, state: dict[str, Tensor], output_indices: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The module's call, then the ring writes."""
        wanted = () if output_indices is None else (output_indices,)
        output, new = self.module(x, state, *wanted)
        sealed = dict(new)
        if self._open.position == "input":
            start, time = state[POSITION], x.shape[1]
            sealed[POSITION] = start + time
            positions = start[:, None] + torch.arange(time, device=x.device)  # [B, T]
            for spec in self._open:
                if spec.window is not None:
                    slots = torch.remainder(positions, spec.window)[:, None, :, None]
                    entries = new[spec.name]  # [B, H, T, D]
                    sealed[spec.name] = state[spec.name].scatter(2, slots.expand_as(entries), entries)
        return output, sealed


def export_graph(module: nn.Module, contract: Contract, *, max_time: int | None = None) -> ir.Model:
    """Trace ``module`` into an ONNX model whose inputs and outputs are the contract's.

    Batch and time axes are dynamic, but the time axis is 1 in a graph of one step; state shapes are static.

    Args:
        module: Follows the streaming protocol.
        contract: Its contract.
        max_time: Most time steps of one call of this graph; by default what the contract allows.

    Raises:
        ExportError: torch's exporter cannot trace the module, or fixes an axis that must stay free.
    """
    use_indices = contract.output_indices and takes_output_indices(module)
    if contract.output_indices != use_indices:
        raise ExportError(f"{type(module).__name__}.forward has no parameter output_indices, which its contract names.")
    batch, time, length = 2, min(3, max_time or contract.max_chunk), 4
    x = example_input(contract, batch, time, torch.Generator().manual_seed(0))
    state = initial_tensors(contract, batch, length=length)
    args: list[Tensor] = [x]
    axes: list[dict[int, str]] = [{0: _BATCH, 1: _TIME}]
    if contract.position == "input":
        args.append(torch.full((batch,), length, dtype=torch.int64))
        axes.append({0: _BATCH})
    if contract.output_indices:
        args.append(torch.arange(time)[-2:])
        axes.append({0: _OUTPUTS})
    for spec in contract:
        args.append(state[spec.name])
        axes.append({0: _BATCH} | ({1 + spec.growing_axis: _LENGTH} if spec.growing_axis is not None else {}))
    if time == 1:
        axes[0].pop(1)
    dynamic = [{axis: Dim.DYNAMIC for axis in named} for named in axes]
    try:
        _forget_recurrent_dispatch()
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                _Flat(module, contract).eval(),
                tuple(args),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(contract.graph_inputs),
                output_names=list(contract.graph_outputs),
                dynamic_shapes=(dynamic[0], tuple(dynamic[1:])),
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"torch cannot export {type(module_inside(module)).__name__}: {_first_line(error)}",
            hint="Most often: Python control flow on a tensor's value, or on the number of time steps.",
        ) from error
    assert program is not None
    model = program.model
    _name_axes(model, contract, axes)
    _strip_traces(model)
    return model


def _name_axes(model: ir.Model, contract: Contract, axes: list[dict[int, str]]) -> None:
    """Give the free axes their names, and fail where torch fixed one.

    Shapes that torch noted inside the graph are dropped: some (those after an LSTM) are the example's, not the
    model's, and engines infer their own.
    """
    for value, named in zip(model.graph.inputs, axes, strict=True):
        assert value.shape is not None
        sizes = list(value.shape)
        for axis, name in named.items():
            if isinstance(sizes[axis], int):
                raise ExportError(
                    f"the {name} axis of {value.name} was fixed to {sizes[axis]} by the trace.",
                    hint="The module computes something from that size as a Python number; use tensor operations.",
                )
            sizes[axis] = ir.SymbolicDim(name)
        value.shape = ir.Shape(sizes)
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None
    time: int | str = axes[0].get(1, 1)
    produced = _OUTPUTS if contract.output_indices else time
    shapes: list[list[int | str]] = [[_BATCH, produced, *contract.output.shape]]
    for spec in contract:
        if spec.update == "append":
            heads, _, width = spec.fixed_shape
            shapes.append([_BATCH, heads, time, width])
        else:
            shapes.append([_BATCH, *(f"{_LENGTH} + {time}" if size is None else size for size in spec.shape)])
    for value, shape in zip(model.graph.outputs, shapes, strict=True):
        value.shape = ir.Shape(shape)


def _strip_traces(model: ir.Model) -> None:
    """Remove what torch notes beside every node: stack traces with this machine's paths, nine tenths of the file."""
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


def _forget_recurrent_dispatch() -> None:
    """Let every export of an LSTM or GRU be as the first of the process.

    torch 2.13 swaps in its exportable form of these operators for a trace, and back; what it cached of the dispatch
    meanwhile it keeps, so that the next trace unrolls them over the example's time steps.
    """
    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        getattr(operator, "_dispatch_cache", {}).clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter prints its progress and warns about itself; an edgemem user can act on neither."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: BaseException) -> str:
    """The cause that torch wraps in pages of advice, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # A line that ends in a colon announces the cause, which is the next.
    cause = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {cause}"
