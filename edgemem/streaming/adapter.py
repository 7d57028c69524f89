"""From ``forward(x, state) -> (y, state)`` with a state of any nesting to the flat streaming protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgemem.contract import POSITION, Contract, InputSpec, OutputSpec, StateSpec
from edgemem.errors import ContractError, ProtocolError
from edgemem.streaming.leaves import MAX_CHUNK, Leaf, described, flatten, listed, read_start
from edgemem.streaming.source_code import declaration


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
                input_specs=(input,),
                output_specs=(output,),
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
            given = listed(leaf.path for leaf in self.leaves)
            raise ProtocolError(
                f"{type(self.module).__name__}.forward was given the state {given}, and returned "
                f"{listed(path for path, _ in found)}.",
                hint="What goes out must be nested as what comes in.",
            )
        for leaf, (_, value) in zip(self.leaves, found, strict=True):
            if not isinstance(value, Tensor) or value.ndim != len(leaf.shape) + 1:
                got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else described(value)
                wanted = [*leaf.shape[: leaf.batch_axis], "batch", *leaf.shape[leaf.batch_axis :]]
                raise ProtocolError(
                    f"{type(self.module).__name__}.forward: the state {leaf.name!r} came out as {got}, "
                    f"it went in as [{', '.join(map(str, wanted))}]."
                )
        return {
            leaf.name: value.movedim(leaf.batch_axis, 0) for leaf, (_, value) in zip(self.leaves, found, strict=True)
        }

    def declaration(self) -> str:
        """The Python expression that makes this adapter, to be pasted."""
        return declaration(self.module, self.start, self._contract, self.leaves, self._treespec)

    @property
    def user_module(self) -> nn.Module:
        """The module that the user wrote, whose name and paths they know."""
        return self.module


def _dtype_name(leaf: Leaf) -> Any:
    return str(leaf.dtype).removeprefix("torch.")


def _buffer_name(leaf: Leaf) -> str:
    return "start_of_" + leaf.name.replace(".", "__")
