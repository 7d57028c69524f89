"""From a torch module to an ONNX graph with explicit state: the one place that calls torch's exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import Dim

from edgemem.bundle import GraphFile
from edgemem.contract import OUTPUT_INDICES, POSITION, Axis, Contract, Sizes, TensorSpec
from edgemem.errors import ExportError
from edgemem.export.passes.name_axes import name_axes
from edgemem.export.passes.strip_traces import strip_traces
from edgemem.protocol import (
    as_one,
    by_name,
    example_inputs,
    initial_tensors,
    module_inside,
    takes_output_indices,
)

OPSET = 20


class _Flat(nn.Module):
    """The module with its inputs and outputs in the contract's order instead of in dictionaries."""

    def __init__(self, module: nn.Module, contract: Contract) -> None:
        super().__init__()
        self.module = module
        self._contract = contract

    def forward(self, first: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        # The data has a name of its own: else torch reads the number of streams from a ring.
        contract = self._contract
        given = dict(zip(contract.graph_inputs, (first, *rest), strict=True))
        state = {spec.name: given[spec.input_name] for spec in contract}
        if contract.position == "input":
            state[POSITION] = given[POSITION]
        x = as_one(contract, {spec.name: given[spec.name] for spec in contract.input_specs})
        wanted = {OUTPUT_INDICES: given[OUTPUT_INDICES]} if contract.output_indices else {}
        output, new = self.module(x, state, **wanted)
        outputs = by_name(contract, output)
        return (*(outputs[spec.name] for spec in contract.output_specs), *(new[spec.name] for spec in contract))


def export_graph(module: nn.Module, contract: Contract, *, max_time: int | None = None) -> ir.Model:
    """Trace ``module`` into an ONNX model whose inputs and outputs are the contract's.

    Batch and time axes are dynamic, but in a graph of one step the time axis is fixed. State shapes are static.

    Args:
        module: Follows the streaming protocol.
        contract: Its contract.
        max_time: Most time steps of one call of this graph; by default what the contract allows.

    Raises:
        ExportError: torch's exporter cannot trace the module, or fixes an axis that must be dynamic.
    """
    use_indices = contract.output_indices and takes_output_indices(module)
    if contract.output_indices != use_indices:
        raise ExportError(f"{type(module).__name__}.forward has no parameter output_indices, which its contract names.")
    graph = GraphFile("", 1, max_time or contract.max_chunk)
    _refuse_layers(module, graph.max_time)
    sizes = Sizes(batch=2, time=min(3, graph.max_time), selected=min(2, graph.max_time), length=4)
    tensors = contract.inputs(graph)
    args = _examples(contract, tensors, sizes)
    axes = [_free_axes(tensor) for tensor in tensors]
    dynamic = _dynamic_shapes(tensors, graph.max_time)
    try:
        _forget_recurrent_dispatch()
        with _quiet(), torch.no_grad(), _without_cache():
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
        name, cause = type(module_inside(module)).__name__, _first_line(error)
        if missing := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", cause):
            raise ExportError(
                f"{name} uses {missing[1]}, which torch cannot express in ONNX.",
                hint="Write it with other operators: docs/own-model.md.",
            ) from error
        raise ExportError(
            f"torch cannot export {name}: {_with_names(cause, contract)}",
            hint="Most often: Python control flow on a tensor's value, or on the number of time steps.",
        ) from error
    assert program is not None
    model = program.model
    name_axes(model, axes, contract.outputs(graph))
    strip_traces(model)
    return model


def _refuse_layers(module: nn.Module, max_time: int) -> None:
    """Refuse recurrent layers that ONNX or torch's exporter does not have."""
    for path, layer in module_inside(module).named_modules():
        if isinstance(layer, nn.LSTM) and layer.proj_size:
            raise ExportError(
                f"{path or 'the model'} is an nn.LSTM with proj_size={layer.proj_size}, "
                "and ONNX's LSTM has no projection.",
                hint="Train it without proj_size, or write the step out with nn.Linear (docs/own-model.md).",
            )
        if isinstance(layer, nn.RNN) and max_time > 1:
            raise ExportError(
                f"{path or 'the model'} is an nn.RNN, which torch's exporter writes for one number of steps only.",
                hint="Use nn.GRU or nn.LSTM, or declare single steps: max_chunk=1.",
            )


def _examples(contract: Contract, tensors: Sequence[TensorSpec], sizes: Sizes) -> list[Tensor]:
    """Values to trace with, in the order of the graph's inputs."""
    generator = torch.Generator().manual_seed(0)
    state = initial_tensors(contract, sizes.batch, length=sizes.length)
    given = {
        **example_inputs(contract, sizes.batch, sizes.time, generator),
        **{spec.input_name: state[spec.name] for spec in contract},
        POSITION: torch.full((sizes.batch,), sizes.length, dtype=torch.int64),
        OUTPUT_INDICES: torch.arange(sizes.time)[-sizes.selected :],
    }
    return [given[tensor.name] for tensor in tensors]


def _free_axes(tensor: TensorSpec) -> dict[int, str]:
    """The axes that a call sizes, with their names."""
    return {at: str(axis) for at, axis in enumerate(tensor.axes) if isinstance(axis, Axis) and axis.only is None}


def _dynamic_shapes(tensors: Sequence[TensorSpec], max_time: int) -> list[dict[int, Any]]:
    """The free axes as torch's exporter wants them.

    Where a step takes several items of an input, torch must know that its time axis is a multiple: it could not divide
    a size that may be anything.
    """
    times = [axis for tensor in tensors for axis in tensor.axes if isinstance(axis, Axis) and axis.kind == "time"]
    is_plain = all(axis.times == 1 and axis.plus == 0 for axis in times)
    time = Dim("time", min=1, max=max(2, max_time))  # unused in a graph of one step
    found: list[dict[int, Any]] = []
    for tensor in tensors:
        free: dict[int, Any] = {}
        for at in _free_axes(tensor):
            axis = tensor.axes[at]
            assert isinstance(axis, Axis)
            free[at] = Dim.DYNAMIC if is_plain or axis.kind != "time" else _derived(time, axis)
        found.append(free)
    return found


def _derived(time: Dim, axis: Axis) -> Any:
    multiple = time if axis.times == 1 else axis.times * time
    return multiple + axis.plus if axis.plus else multiple


def _forget_recurrent_dispatch() -> None:
    """Make every export of an LSTM or GRU like the first of the process.

    For a trace, torch 2.13 replaces these operators by exportable forms, and undoes that afterwards. But it keeps what
    its dispatcher cached in between, so the next trace would unroll them over the steps of the example.
    """
    for operator in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        getattr(operator, "_dispatch_cache", {}).clear()


def _without_cache() -> contextlib.AbstractContextManager[None]:
    """Let torch compute the shape of each operator's output anew.

    Looking for one that was computed before takes longer where shapes are symbols.
    """
    patched: contextlib.AbstractContextManager[None] = torch._dynamo.config.patch(fake_tensor_cache_enabled=False)
    return patched


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what torch's exporter prints and warns about: a user of edgemem can do nothing about it."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _first_line(error: BaseException) -> str:
    """The cause of an error in one line, without the pages of advice that torch puts around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    # After a line that ends in a colon, the cause is in the next line.
    cause = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return f"{type(error).__name__}: {cause}"


def _with_names(message: str, contract: Contract) -> str:
    """A message of torch with the graph's names for the inputs that it numbers."""
    message = message.replace("inputs['first']", contract.graph_inputs[0])
    return re.sub(r"inputs\['rest'\]\[(\d+)\]", lambda found: contract.graph_inputs[1 + int(found[1])], message)
