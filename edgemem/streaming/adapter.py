"""From ``forward(x, state) -> (y, state)`` with a state of any nesting to the flat streaming protocol."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgemem.contract import POSITION, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import ContractError, ProtocolError

MAX_CHUNK = 256
_BATCHES = (2, 3)


@dataclass(frozen=True)
class Leaf:
    """One tensor of a nested state.

    Attributes:
        path: Where in the nesting it lies, as Python writes it: ``.cell[0]["h"]``.
        name: Its name in the contract.
        shape: Its shape in the module, the batch axis left out.
        dtype: Its dtype.
        batch_axis: Which axis of the module's own tensor is the batch: 1 in ``nn.LSTM``'s ``[layers, B, width]``.
        fill: Value of every element at the start; ``None`` where they differ.
        initial: The value at the start ``[*shape]``.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_axis: int
    fill: float | None
    initial: Tensor


class Streaming(nn.Module):
    """A module ``forward(x, state) -> (y, state)`` behind the streaming protocol.

    The state may be a tensor, or tensors nested in dicts, tuples, lists, namedtuples and dataclasses. The batch axis of
    each tensor is found by asking for the state of two and of three streams. States whose elements do not all start at
    the same value (a learned first state) make the contract take ``position``: the start is put in where it is 0.

    Args:
        module: Takes ``x`` ``[B, T, ...]`` and the state, returns ``[B, T, ...]`` and the new state.
        state: Gives the state of so many streams at their start, such as
            ``lambda batch: torch.zeros(2, batch, 64)``.
        input: What the module takes.
        output: What it gives.
        names: The states' names in the contract, in the order of the nesting; by default the paths: ``cell.h``.
        max_chunk: Most time steps of one call; 1 for a module that takes single steps alone.

    Raises:
        ProtocolError: The state at the start is no nesting of tensors with one batch axis each.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        state: Callable[[int], Any],
        input: InputSpec,
        output: OutputSpec,
        names: Sequence[str] | None = None,
        max_chunk: int = MAX_CHUNK,
    ) -> None:
        super().__init__()
        self.module = module
        self.start = state
        self.leaves, self._treespec = read_start(state, names)
        uneven = [leaf for leaf in self.leaves if leaf.fill is None]
        for leaf in uneven:
            # Not persistent: it is the module's own, and its weights are stored once.
            self.register_buffer(_buffer_name(leaf), leaf.initial, persistent=False)
        try:
            self._contract = Contract(
                input=input,
                output=output,
                states=tuple(
                    StateSpec(leaf.name, leaf.shape, _dtype_name(leaf), initial=leaf.fill or 0.0)
                    for leaf in self.leaves
                ),
                max_chunk=max_chunk,
                position="input" if uneven else "none",
            )
        except ContractError as error:
            raise ProtocolError(f"{type(module).__name__}: {error.message}", hint=error.hint) from error

    def contract(self) -> Contract:
        """What the module takes, gives and carries."""
        return self._contract

    def forward(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``[B, T, ...]`` and the flat state, to the outputs and the new flat state."""
        if self._contract.max_chunk == 1 and x.shape[1] > 1:
            return self._stepwise(x, state)
        result = self.module(x, self.nest(state))
        if not isinstance(result, tuple) or len(result) != 2:
            kind = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
            raise ProtocolError(f"{type(self.module).__name__}.forward returned {kind}, wanted (outputs, new state).")
        output, new = result
        return output, self.flatten(new)

    def _stepwise(self, x: Tensor, state: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The full-sequence pass of a module that takes single steps alone: what an export is held to."""
        outputs, carried = [], dict(state)
        for step in torch.split(x, 1, dim=1):
            output, new = self(step, carried)
            carried.update(new)
            if POSITION in carried:
                carried[POSITION] = carried[POSITION] + 1
            outputs.append(output)
        carried.pop(POSITION, None)
        return torch.cat(outputs, dim=1), carried

    def nest(self, state: Mapping[str, Tensor]) -> Any:
        """The module's own state from the contract's tensors ``[B, *shape]``."""
        values = []
        for leaf in self.leaves:
            value = state[leaf.name]
            if leaf.fill is None:
                begins = (state[POSITION] == 0).reshape(-1, *(1 for _ in leaf.shape))
                value = torch.where(begins, self.get_buffer(_buffer_name(leaf)), value)
            # torch exports a stack of recurrent layers from contiguous states alone.
            values.append(value.movedim(0, leaf.batch_axis).contiguous() if leaf.batch_axis else value)
        return pytree.tree_unflatten(values, self._treespec)

    def flatten(self, tree: Any) -> dict[str, Tensor]:
        """The contract's tensors from the module's own state.

        Raises:
            ProtocolError: It is nested otherwise than the state at the start.
        """
        found, _ = flatten(tree)
        if [path for path, _ in found] != [leaf.path for leaf in self.leaves]:
            given = _listed(leaf.path for leaf in self.leaves)
            raise ProtocolError(
                f"{type(self.module).__name__}.forward was given the state {given}, and returned "
                f"{_listed(path for path, _ in found)}.",
                hint="What goes out must be nested as what comes in.",
            )
        for leaf, (_, value) in zip(self.leaves, found, strict=True):
            if not isinstance(value, Tensor) or value.ndim != len(leaf.shape) + 1:
                got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else _described(value)
                wanted = [*leaf.shape[: leaf.batch_axis], "batch", *leaf.shape[leaf.batch_axis :]]
                raise ProtocolError(
                    f"{type(self.module).__name__}.forward: the state {leaf.name!r} came out as {got}, "
                    f"it went in as {_shape_text(wanted)}."
                )
        return {
            leaf.name: value.movedim(leaf.batch_axis, 0) for leaf, (_, value) in zip(self.leaves, found, strict=True)
        }

    def declaration(self) -> str:
        """The Python expression that makes this adapter, to be pasted."""
        from edgemem.streaming.source_code import declaration

        return declaration(self)

    @property
    def treespec(self) -> pytree.TreeSpec:
        """How the state is nested."""
        return self._treespec


def module_inside(module: nn.Module) -> nn.Module:
    """The module that the user wrote, whose name and paths they know."""
    return module.module if isinstance(module, Streaming) else module


def read_start(state: Callable[[int], Any], names: Sequence[str] | None) -> tuple[tuple[Leaf, ...], pytree.TreeSpec]:
    """The tensors of a state at the start, and how they are nested.

    Raises:
        ProtocolError: See :class:`Streaming`.
    """
    try:
        with torch.no_grad():
            (few, treespec), (more, _) = (flatten(state(batch)) for batch in _BATCHES)
    except ProtocolError:
        raise
    except Exception as error:
        raise ProtocolError(
            f"the state at the start, of {_BATCHES[0]} streams, raised {type(error).__name__}: {error}",
            hint="state= is a function of the number of streams: lambda batch: torch.zeros(2, batch, 64)",
        ) from error
    if not few:
        raise ProtocolError("the state at the start holds no tensor.")
    if [path for path, _ in few] != [path for path, _ in more]:
        raise ProtocolError("the state at the start is nested differently for two streams and for three.")
    if names is None:
        names = [default_name(path, len(few)) for path, _ in few]
    elif len(names) != len(few):
        raise ProtocolError(f"{len(names)} names for {len(few)} states: {_listed(path for path, _ in few)}.")
    leaves = tuple(
        _leaf(path, name, one, other) for name, (path, one), (_, other) in zip(names, few, more, strict=True)
    )
    return leaves, treespec


def _leaf(path: str, name: str, two: Any, three: Any) -> Leaf:
    what = f"the state {name!r} at the start"
    if not isinstance(two, Tensor) or not isinstance(three, Tensor):
        raise ProtocolError(
            f"{what} is {_described(two)}, wanted a tensor.",
            hint="A trace turns a Python value into a constant: keep it as a tensor with a batch axis.",
        )
    axis = batch_axis(what, two, three)
    rows = two.detach().movedim(axis, 0)
    if not torch.equal(rows[0], rows[1]) and not _both_nan(rows):
        raise ProtocolError(f"{what} differs from stream to stream.", hint="Every stream must start alike.")
    first = rows[0].clone()
    fill = float(first.flatten()[0]) if first.numel() and bool((first == first.flatten()[0]).all()) else None
    return Leaf(path, name, tuple(first.shape), first.dtype, axis, fill, first)


def batch_axis(what: str, two: Tensor, three: Tensor) -> int:
    """The axis that has size 2 with two streams and 3 with three.

    Raises:
        ProtocolError: There is none, or the batch is folded into another axis.
    """
    sizes = f"{list(two.shape)} for two streams, {list(three.shape)} for three"
    differing = [axis for axis, (a, b) in enumerate(zip(two.shape, three.shape, strict=False)) if a != b]
    if two.ndim != three.ndim or len(differing) > 1:
        raise ProtocolError(f"{what} has no one batch axis: {sizes}.")
    if not differing:
        raise ProtocolError(
            f"{what} has no batch axis: {sizes}.",
            hint="Every stream needs a value of its own, and torch's recurrent layers batch_first=True.",
        )
    (axis,) = differing
    if (two.shape[axis], three.shape[axis]) != _BATCHES:
        raise ProtocolError(
            f"{what} has its batch folded into another axis: {sizes}.", hint="Keep the batch on an axis of its own."
        )
    return axis


def flatten(tree: Any) -> tuple[list[tuple[str, Any]], pytree.TreeSpec]:
    """The leaves of a nested state with their paths, and how they are nested; dataclasses are opened too."""
    leaves, treespec = pytree.tree_flatten_with_path(tree)
    unknown = {type(leaf) for _, leaf in leaves if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type)}
    if unknown:
        for kind in unknown:
            pytree.register_dataclass(kind)
        return flatten(tree)
    return [(pytree.keystr(path), leaf) for path, leaf in leaves], treespec


def default_name(path: str, count: int) -> str:
    """A name for the contract from a path: ``.cell[0]['h']`` is ``cell.0.h``; paths of numbers alone get ``state``."""
    parts = [part for part in re.split(r"[^A-Za-z0-9_]+", path) if part]
    return ".".join(["state", *parts] if all(part.isdigit() for part in parts) else parts)


def _dtype_name(leaf: Leaf) -> Any:
    return str(leaf.dtype).removeprefix("torch.")


def _buffer_name(leaf: Leaf) -> str:
    return "start_of_" + leaf.name.replace(".", "__")


def _both_nan(rows: Tensor) -> bool:
    return rows.is_floating_point() and torch.allclose(rows[0], rows[1], equal_nan=True)


def _described(value: Any) -> str:
    return "None" if value is None else f"a {type(value).__name__}"


def _listed(paths: Any) -> str:
    return ", ".join(path or "(one tensor)" for path in paths) or "none"


def _shape_text(sizes: Sequence[Any]) -> str:
    return f"[{', '.join(map(str, sizes))}]"
