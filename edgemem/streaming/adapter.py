"""From ``forward(x, state) -> (y, state)`` with a state of any nesting to the flat streaming protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgemem.contract import Contract, InputSpec, OutputSpec, StateSpec, initial_bytes
from edgemem.errors import ContractError, ProtocolError
from edgemem.streaming.leaves import MAX_CHUNK, Leaf, described, flatten, listed, read_start
from edgemem.streaming.source_code import declaration


class Streaming(nn.Module):
    """A module ``forward(x, state) -> (y, state)`` behind the streaming protocol.

    The state may be a tensor, or tensors nested in dicts, tuples, lists, namedtuples and dataclasses. The batch axis of
    each tensor is found by asking for the state of two and of three streams; the contract declares it where it is.

    Args:
        module: Takes ``x`` and the state, returns ``y`` and the new state. ``x`` is a tensor ``[B, T, ...]`` where
            there is one input, else a dict of tensors by name; ``y`` is a tensor where there is one output, else a
            tuple or a dict.
        state: Gives the initial state of so many streams, such as ``lambda batch: torch.zeros(2, batch, 64)``.
        inputs: What the module takes: one :class:`~edgemem.InputSpec` or several.
        outputs: What it gives: one :class:`~edgemem.OutputSpec` or several.
        names: The states' names in the contract, in the order of the nesting; by default the paths: ``cell.h``.
        max_chunk: Most steps of one call; 1 for a module that takes single steps only.
        ignore: Attributes and buffers that may change between calls, because no output depends on them, as patterns of
            their paths, such as ``"encoder.calls"``.

    Raises:
        ProtocolError: The initial state is not a nesting of tensors with one batch axis each, or the inputs, outputs
            and states do not fit together.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        state: Callable[[int], Any],
        inputs: InputSpec | Sequence[InputSpec],
        outputs: OutputSpec | Sequence[OutputSpec],
        names: Sequence[str] | None = None,
        max_chunk: int = MAX_CHUNK,
        ignore: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.module = module
        self.start = state
        self.ignored = tuple(ignore)
        self.leaves, self._treespec = read_start(state, names)
        try:
            self._contract = Contract(
                input_specs=(inputs,) if isinstance(inputs, InputSpec) else tuple(inputs),
                output_specs=(outputs,) if isinstance(outputs, OutputSpec) else tuple(outputs),
                states=tuple(_spec(leaf) for leaf in self.leaves),
                max_chunk=max_chunk,
                position="none",
            )
        except ContractError as error:
            raise ProtocolError(f"{type(module).__name__}: {error.message}", hint=error.hint) from error

    def contract(self) -> Contract:
        """What the module takes, gives and carries."""
        return self._contract

    def forward(self, x: Any, state: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """The module's inputs and the flat state, to its outputs and the new flat state."""
        result = self.module(x, self.nest(state))
        if not isinstance(result, tuple) or len(result) != 2:
            kind = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
            raise ProtocolError(f"{type(self.module).__name__}.forward returned {kind}, wanted (outputs, new state).")
        output, new = result
        return output, self.flatten(new)

    def nest(self, state: Mapping[str, Tensor]) -> Any:
        """The module's own state from the contract's tensors."""
        return pytree.tree_unflatten([state[leaf.name] for leaf in self.leaves], self._treespec)

    def flatten(self, tree: Any) -> dict[str, Tensor]:
        """The contract's tensors from the module's own state.

        Raises:
            ProtocolError: It is nested differently from the initial state.
        """
        found, _ = flatten(tree)
        if [path for path, _ in found] != [leaf.path for leaf in self.leaves]:
            given = listed(leaf.path for leaf in self.leaves)
            raise ProtocolError(
                f"{type(self.module).__name__}.forward was given the state {given}, and returned "
                f"{listed(path for path, _ in found)}.",
                hint="The new state must be nested like the old one.",
            )
        for leaf, (_, value) in zip(self.leaves, found, strict=True):
            if not isinstance(value, Tensor) or value.ndim != len(leaf.shape) + 1:
                got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else described(value)
                wanted = [*leaf.shape[: leaf.batch_axis], "batch", *leaf.shape[leaf.batch_axis :]]
                raise ProtocolError(
                    f"{type(self.module).__name__}.forward was given the state {leaf.name!r} as "
                    f"[{', '.join(map(str, wanted))}], and returned {got}."
                )
        return {leaf.name: value for leaf, (_, value) in zip(self.leaves, found, strict=True)}

    def declaration(self) -> str:
        """The Python expression that makes this adapter, to be pasted."""
        return declaration(self.module, self.start, self._contract, self.leaves, self._treespec, self.ignored)

    @property
    def user_module(self) -> nn.Module:
        """The module that the user wrote, whose name and paths they know."""
        return self.module


def _spec(leaf: Leaf) -> StateSpec:
    """The state of one tensor; where its elements start at different values, the whole tensor is its initial value."""
    dtype: Any = str(leaf.dtype).removeprefix("torch.")
    initial: float | bytes | None = leaf.fill
    if initial is None:
        value = leaf.initial.float() if leaf.initial.dtype == torch.bfloat16 else leaf.initial
        initial = initial_bytes(value.numpy(), dtype)
    return StateSpec(leaf.name, leaf.shape, dtype, initial=initial, batch_axis=leaf.batch_axis)
