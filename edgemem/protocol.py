"""The streaming protocol: what a torch module must offer to be exported.

A module declares what it carries, takes it, and gives it back::

    class Model(nn.Module):
        def contract(self) -> Contract: ...
        def forward(self, x, state): ...
            return outputs, new_state

``x`` is the data ``[B, T, ...]``; ``state`` maps the name of every declared state to its tensor ``[B, *shape]``, and,
where the contract says ``position="input"``, ``"position"`` to int64 ``[B]``. ``new_state`` has the same names: the
whole new value of a replaced state, the ``T`` new entries ``[B, H, T, D]`` of an appended one. A third parameter
``output_indices`` (int64 ``[S]``) lets a caller ask for some time steps' outputs only.
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

    def forward(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Outputs for the ``T`` time steps of ``x``, and the new state."""


TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ELEMENT_TYPES}


def module_inside(module: nn.Module) -> nn.Module:
    """The module that the user wrote: an adapter around one has it as ``user_module``."""
    inside: nn.Module = getattr(module, "user_module", module)
    return inside


def takes_output_indices(module: nn.Module) -> bool:
    """Whether ``module.forward`` has the optional third parameter."""
    return "output_indices" in inspect.signature(module.forward).parameters


def example_inputs(contract: Contract, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random values for every input of a call of ``time`` steps, as the graph takes them.

    Token ids are uniform, real values standard normal; a fixed input has its value.
    """
    found = {}
    for tensor in contract.inputs(GraphFile("", time, time)):
        spec = tensor.spec
        if isinstance(spec, InputSpec):
            found[spec.name] = _example(spec, tensor.shape(Sizes(batch, time)), generator)
    return found


def _example(spec: InputSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = TORCH_DTYPES[spec.dtype]
    if spec.role == "fixed":
        return torch.tensor(spec.value, dtype=dtype)
    if spec.is_tokens:
        return torch.randint(0, spec.vocab_size or 1, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def example_input(contract: Contract, batch: int, time: int, generator: torch.Generator) -> Tensor:
    """The same for a model of one input: ``[B, T]`` token ids, or ``[B, T, F]`` standard normal values."""
    return example_inputs(contract, batch, time, generator)[contract.input.name]


def as_one(contract: Contract, tensors: Mapping[str, Tensor]) -> Any:
    """What ``forward`` gets as ``x``: the tensor where the contract has one input, else all of them by name."""
    return tensors[contract.input.name] if len(contract.input_specs) == 1 else dict(tensors)


def by_name(contract: Contract, output: Any) -> dict[str, Tensor]:
    """What ``forward`` gives, by name: it may give a tensor where there is one output, a tuple, or a mapping."""
    names = [spec.name for spec in contract.output_specs]
    if isinstance(output, Mapping):
        return {name: output[name] for name in names}
    return dict(zip(names, (output,) if isinstance(output, Tensor) else output, strict=True))


def initial_tensors(contract: Contract, batch: int, *, length: int = 0) -> dict[str, Tensor]:
    """The state at position 0, by name, as the graph takes it; a growing axis gets ``length`` entries."""
    state = {}
    for spec in contract:
        value = torch.from_numpy(initial_state(spec, batch))
        if spec.dtype == "bfloat16":
            value = value.view(torch.int16).view(torch.bfloat16)
        if spec.growing_axis is not None:
            sizes = (length if size is None else size for size in spec.shape)
            value = torch.full((batch, *sizes), float(spec.initial), dtype=TORCH_DTYPES[spec.dtype])
        state[spec.name] = value[0] if spec.batch_axis is None else value.movedim(0, spec.batch_axis)
    if contract.position == "input":
        state[POSITION] = torch.zeros(batch, dtype=torch.int64)
    return state


def check_protocol(module: object) -> nn.Module:
    """Run the module on small data and hold what it does to its contract.

    Returns:
        The module, in evaluation mode.

    Raises:
        ProtocolError: It is no torch module, has no contract, or its forward takes, drops or reshapes a state
            differently from what the contract says.
    """
    if not isinstance(module, nn.Module):
        raise ProtocolError(f"the factory returned a {type(module).__name__}, wanted a torch.nn.Module.")
    if not isinstance(module, StreamingModule):
        raise ProtocolError(
            f"{type(module).__name__} has no contract() method.",
            hint="Declare inputs, outputs and states: see docs/own-model.md.",
        )
    contract = module.contract()
    if not isinstance(contract, Contract):
        raise ProtocolError(f"{type(module).__name__}.contract() returned a {type(contract).__name__}.")
    module.eval()  # type: ignore[attr-defined]
    for time in {1, min(3, contract.max_chunk)}:
        _check_call(module, contract, time)  # type: ignore[arg-type]
    return module  # type: ignore[return-value]


def _check_call(module: nn.Module, contract: Contract, time: int) -> None:
    own, batch = module_inside(module), telling_batch(contract)
    x = example_input(contract, batch, time, torch.Generator().manual_seed(0))
    call = f"{type(own).__name__}.forward on data of shape {list(x.shape)}"
    before = kept(own)
    with torch.inference_mode(), Origins(own, find_nan=True) as origins:
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
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise ProtocolError(f"{call} returned {_kind(result)}, wanted (outputs, new_state).")
    output, new = result
    wanted = (batch, time, *contract.output.shape)
    _check_tensor(f"{call}: {contract.output.name}", output, wanted, contract.output.dtype, origins)
    forgotten = [spec.name for spec in contract if spec.name not in new]
    if forgotten:
        raise ProtocolError(
            f"{call} forgot the state {', '.join(forgotten)}: it returned {sorted(new) or 'none'}.",
            hint="new_state must hold every state that contract() declares.",
        )
    undeclared = sorted(set(new) - {spec.name for spec in contract} - {POSITION})
    if undeclared:
        raise ProtocolError(f"{call} returned the state {', '.join(undeclared)}, which contract() does not declare.")
    for spec in contract:
        _check_tensor(f"{call}: state {spec.name!r}", new[spec.name], new_shape(spec, batch, time), spec.dtype, origins)
    pairs = [(output, again[0]), *((new[spec.name], again[1].get(spec.name)) for spec in contract)]
    if not all(_same(first, second) for first, second in pairs):
        held = changed(before, kept(own))
        raise ProtocolError(
            f"{call} gave other numbers when it was called again with the same data and state{kept_in(module, held)}.",
            hint="What it keeps between calls must be a state, not an attribute; and nothing may be drawn at random.",
        )


def telling_batch(contract: Contract) -> int:
    """A batch of 2 or more that is no size of a state, nor the 3 time steps tried: no other axis can pass for it."""
    taken = {3, *(size for spec in contract for size in spec.shape)}
    return next(batch for batch in itertools.count(2) if batch not in taken)


def new_shape(spec: StateSpec, batch: int, time: int) -> tuple[int, ...]:
    """Shape of what a call of ``time`` steps from position 0 gives for a state."""
    if spec.update == "append":
        heads, _, width = spec.fixed_shape
        return (batch, heads, time, width)
    return (batch, *(time if size is None else size for size in spec.shape))


def kept_in(module: nn.Module, paths: Sequence[str]) -> str:
    """Names the first of the attributes or buffers that a call changed, and the submodule that keeps it."""
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
            f"{what} came out as {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
            f", the contract says {dtype} {list(shape)}{f'; made in {place}' if place else ''}."
        )
    if has_nan(value):
        place = origins.place(origins.first_nan)
        raise ProtocolError(
            f"{what} holds NaN{f', which first arose in {place}' if place else ''}.",
            hint="On standard normal data from the state at the start: check the weights, divisions and logarithms.",
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
    """File and line of the innermost frame, so that a user finds the place without a traceback."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return None if frame is None else f"Raised at {frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}."
