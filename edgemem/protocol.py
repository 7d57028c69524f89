"""The streaming protocol: what a torch module must offer to be exported.

A module declares its inputs, outputs and states, takes its state, and returns the new one::

    class Model(nn.Module):
        def contract(self) -> Contract: ...
        def forward(self, x, state): ...
            return outputs, new_state

``x`` is the data ``[B, T, ...]`` where the contract has one input, else a dict of tensors by name. ``state`` maps the
name of every declared state to its tensor ``[B, *shape]`` and, where the contract has ``position="input"``,
``"position"`` to int64 ``[B]``. ``outputs`` is a tensor where the contract has one output, else a tuple in its order or
a dict. ``new_state`` has the names of the states: the whole new value of a replaced state, the ``T`` new entries
``[B, H, T, D]`` of an appended one. Where the contract puts a batch or time axis elsewhere, the tensors have it there.
A third parameter ``output_indices`` (int64 ``[S]``) lets a caller ask for some time steps' outputs only.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from edgemem.bundle import GraphFile
from edgemem.contract import POSITION, Contract, InputSpec, Sizes, StateSpec, initial_state
from edgemem.dtypes import ELEMENT_TYPES
from edgemem.errors import ProtocolError
from edgemem.origins import Origins, changed, has_nan, in_words, kept


@runtime_checkable
class StreamingModule(Protocol):
    """A torch module that can be exported."""

    def contract(self) -> Contract:
        """What the module takes, gives and carries."""

    def forward(self, x: Any, state: Mapping[str, Tensor]) -> tuple[Any, Mapping[str, Tensor]]:
        """Outputs for the ``T`` time steps of ``x``, and the new state."""


TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ELEMENT_TYPES}


def module_inside(module: nn.Module) -> nn.Module:
    """The module that the user wrote: an adapter around one has it as ``user_module``."""
    inside: nn.Module = getattr(module, "user_module", module)
    return inside


def refuse_scripted(module: nn.Module) -> None:
    """Refuse TorchScript: it can be neither traced nor looked into.

    Raises:
        ProtocolError: The module, or one inside it, is scripted or traced.
    """
    for path, inside in module.named_modules():
        if isinstance(inside, torch.jit.ScriptModule):
            where = f"its submodule {path}" if path else "it"
            raise ProtocolError(
                f"{type(module).__name__} cannot be exported: {where} is a TorchScript module.",
                hint="Give the Python module that was scripted or traced, with the same weights (load_state_dict).",
            )


def takes_output_indices(module: nn.Module) -> bool:
    """Whether ``module.forward`` has the optional third parameter."""
    return "output_indices" in inspect.signature(module.forward).parameters


def example_inputs(contract: Contract, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random values for every input of a call of ``time`` steps, as the graph takes them; a fixed input has its value.

    See :func:`random_values`.
    """
    return {
        tensor.name: random_values(tensor.spec, tensor.shape(Sizes(batch, time)), generator)
        for tensor in contract.inputs(GraphFile("", time, time))
        if isinstance(tensor.spec, InputSpec)
    }


def random_values(spec: InputSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values of an input: uniform token ids, fair coin flips for bool, else standard normal values."""
    dtype = TORCH_DTYPES[spec.dtype]
    if spec.role == "fixed":
        return torch.tensor(spec.value, dtype=dtype)
    if spec.is_tokens:
        return torch.randint(0, spec.vocab_size or 1, shape, generator=generator, dtype=dtype)
    values = torch.randn(shape, generator=generator)
    return values > 0 if dtype == torch.bool else values.to(dtype)


def example_input(contract: Contract, batch: int, time: int, generator: torch.Generator) -> Tensor:
    """The same for a model of one input: ``[B, T]`` token ids, or ``[B, T, F]`` standard normal values."""
    return example_inputs(contract, batch, time, generator)[contract.input.name]


def as_one(contract: Contract, tensors: Mapping[str, Tensor]) -> Any:
    """What ``forward`` gets as ``x``: the tensor where the contract has one input, else all of them by name."""
    return tensors[contract.input.name] if len(contract.input_specs) == 1 else dict(tensors)


def steps_of(contract: Contract, x: Any) -> int:
    """The steps of a call whose data is ``x``; in a trace a size that torch keeps symbolic."""
    spec = contract.input
    data = x[spec.name] if isinstance(x, Mapping) else x
    size: int = 1 if spec.time_axis is None else data.shape[spec.time_axis] - spec.context
    return size // spec.takes if spec.takes > 1 else size


def by_name(contract: Contract, output: Any) -> dict[str, Any]:
    """What ``forward`` returns as its outputs, by name. An undeclared entry of a mapping is left out.

    Args:
        contract: The module's contract.
        output: A tensor where there is one output, else a tuple in the contract's order or a mapping.

    Raises:
        ProtocolError: There are fewer or more than declared.
    """
    names = [spec.name for spec in contract.output_specs]
    if isinstance(output, Mapping):
        if missing := [name for name in names if name not in output]:
            raise ProtocolError(f"forward returned the outputs {', '.join(output) or 'none'}, without {missing[0]!r}.")
        return {name: output[name] for name in names}
    values = output if isinstance(output, tuple | list) else (output,)
    if len(values) != len(names):
        raise ProtocolError(f"forward returned {len(values)} outputs, the contract has {', '.join(names)}.")
    return dict(zip(names, values, strict=True))


def initial_tensors(contract: Contract, batch: int, *, length: int = 0) -> dict[str, Tensor]:
    """The initial state by name, as the graph takes it; a growing axis gets ``length`` entries."""
    state = {}
    for spec in contract:
        value = torch.from_numpy(initial_state(spec, batch))
        if spec.dtype == "bfloat16":
            value = value.view(torch.int16).view(torch.bfloat16)
        if spec.growing_axis is not None:
            sizes = (length if size is None else size for size in spec.shape)
            value = torch.full((batch, *sizes), float(spec.initial), dtype=TORCH_DTYPES[spec.dtype])
        value = value[0] if spec.batch_axis is None else value.movedim(0, spec.batch_axis)
        state[spec.name] = (
            value.contiguous()
        )  # what a graph gets; torch exports stacks of recurrent layers from no other
    if contract.position == "input":
        state[POSITION] = torch.zeros(batch, dtype=torch.int64)
    return state


def check_protocol(module: object) -> nn.Module:
    """Run the module on small data and compare what it does with its contract.

    Returns:
        The module, in evaluation mode.

    Raises:
        ProtocolError: It is not a torch module or has no contract; or its forward fails, or its outputs or states are
            not those that the contract declares.
    """
    if not isinstance(module, nn.Module):
        raise ProtocolError(f"the factory returned {type(module).__name__}, wanted a torch.nn.Module.")
    refuse_scripted(module)
    if not isinstance(module, StreamingModule):
        raise ProtocolError(
            f"{type(module).__name__} has no contract() method.",
            hint="Declare inputs, outputs and states: see docs/own-model.md.",
        )
    contract = module.contract()
    if not isinstance(contract, Contract):
        raise ProtocolError(
            f"{type(module).__name__}.contract() returned {type(contract).__name__}, wanted a Contract."
        )
    module.eval()  # type: ignore[attr-defined]
    for time in {1, min(3, contract.max_chunk)}:
        _check_call(module, contract, time)  # type: ignore[arg-type]
    return module  # type: ignore[return-value]


def _check_call(module: nn.Module, contract: Contract, time: int) -> None:
    own, batch = module_inside(module), telling_batch(contract)
    data = example_inputs(contract, batch, time, torch.Generator().manual_seed(0))
    call = f"{type(own).__name__}.forward on {described(contract.input_specs, data)}"
    before = kept(own)
    with torch.inference_mode(), Origins(own, find_nan=True) as origins:
        x = as_one(contract, data)
        try:
            result, again = (module(x, initial_tensors(contract, batch)) for _ in range(2))
        except ProtocolError:
            raise
        except Exception as error:
            where = f" in {origins.place(origins.running)}" if origins.running else ""
            raise ProtocolError(
                f"{call} raised {type(error).__name__}{where}: {error}",
                hint=raised_at(error) or "See docs/own-model.md.",
            ) from error
    found = _named(contract, call, result)
    sizes = Sizes(batch, time, selected=time)
    for tensor in contract.outputs(GraphFile("", time, time)):
        what = f"state {tensor.spec.name!r}" if isinstance(tensor.spec, StateSpec) else tensor.name
        _check_tensor(f"{call}: {what}", found[tensor.name], tensor.shape(sizes), tensor.dtype, origins)
    second = _named(contract, call, again)
    if not all(_same(value, second[name]) for name, value in found.items()):
        held = changed(before, kept(own))
        raise ProtocolError(
            f"{call} gave other numbers when it was called again with the same data and state{kept_in(module, held)}.",
            hint="What it keeps between calls must be a state, not an attribute, and nothing may be random.",
        )


def _named(contract: Contract, call: str, result: object) -> dict[str, Any]:
    """What a call returned, by the names of the graph's outputs.

    Raises:
        ProtocolError: It is not outputs and new state, or lacks one of those declared.
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise ProtocolError(f"{call} returned {_kind(result)}, wanted (outputs, new_state).")
    output, new = result
    if forgotten := [spec.name for spec in contract if spec.name not in new]:
        raise ProtocolError(
            f"{call} forgot the state {', '.join(forgotten)}: it returned {sorted(new) or 'none'}.",
            hint="new_state must hold every state that contract() declares.",
        )
    if undeclared := sorted(set(new) - {spec.name for spec in contract} - {POSITION}):
        raise ProtocolError(f"{call} returned the state {', '.join(undeclared)}, which contract() does not declare.")
    return {**by_name(contract, output), **{spec.output_name: new[spec.name] for spec in contract}}


def described(specs: Sequence[InputSpec], data: Mapping[str, Tensor]) -> str:
    """The shapes of a call's inputs in words: ``data of shape [2, 3, 6]``, or ``audio [2, 12], speaker [2, 16]``."""
    if len(specs) == 1:
        return f"data of shape {list(data[specs[0].name].shape)}"
    return ", ".join(f"{spec.name} {list(data[spec.name].shape)}" for spec in specs)


def telling_batch(contract: Contract) -> int:
    """A batch of 2 or more that no axis of a state or of 3 steps has, so that no other axis is taken for it."""
    taken = {3, *(size for spec in contract for size in spec.shape)}
    taken.update(3 * spec.takes + spec.context for spec in contract.data)
    taken.update(3 * spec.gives for spec in contract.output_specs)
    return next(batch for batch in itertools.count(2) if batch not in taken)


def kept_in(module: nn.Module, paths: Sequence[str]) -> str:
    """The first of the attributes or buffers that a call changed, and the submodule that keeps it, in words."""
    if not paths:
        return ""
    owner = max(
        (path for path, _ in module.named_modules() if not path or paths[0].startswith(f"{path}.")), key=len, default=""
    )
    return f": {in_words(module, owner)} keeps {paths[0]}, which changed"


def _check_tensor(what: str, value: object, shape: tuple[int, ...], dtype: str, origins: Origins) -> None:
    if not isinstance(value, Tensor):
        raise ProtocolError(f"{what} is a {type(value).__name__}, wanted a tensor.")
    if tuple(value.shape) != shape or value.dtype != TORCH_DTYPES[dtype]:
        place = origins.place(origins.of(value))
        raise ProtocolError(
            f"{what} is {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            f", the contract has {dtype} {list(shape)}{f'; made in {place}' if place else ''}."
        )
    if has_nan(value):
        place = origins.place(origins.first_nan)
        raise ProtocolError(
            f"{what} holds NaN{f', which {place} made first' if place else ''}.",
            hint="On standard normal data from the initial state: check the weights, divisions and logarithms.",
        )


def _same(first: Tensor, second: object) -> bool:
    if not isinstance(second, Tensor) or first.shape != second.shape or first.dtype != second.dtype:
        return False
    return torch.allclose(first, second, equal_nan=True) if first.is_floating_point() else torch.equal(first, second)


def _kind(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__


def raised_at(error: BaseException) -> str | None:
    """The file and line where an error was raised, so that a user needs no traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return None if frame is None else f"Raised at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}."
