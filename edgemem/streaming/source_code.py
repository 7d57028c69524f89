"""An adapter written out as Python, for a user to paste."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.utils import _pytree as pytree

from edgemem.contract import Contract, InputSpec, OutputSpec
from edgemem.streaming.leaves import MAX_CHUNK, Leaf, default_name


class _Code:
    """Python text that ``repr`` shows as it is: a nested state prints as the expression that makes it."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def declaration(
    module: nn.Module,
    start: Callable[[int], Any],
    contract: Contract,
    leaves: Sequence[Leaf],
    treespec: pytree.TreeSpec,
) -> str:
    """The expression ``Streaming(module, ...)``.

    Args:
        module: The user's module; the expression calls it ``module``.
        start: Makes the initial state of a number of streams.
        contract: What the adapter takes, gives and carries.
        leaves: The tensors of the state.
        treespec: How they are nested.
    """
    lines = [
        "module",
        f"state={_start(module, start, leaves, treespec)}",
        f"input={_input(contract.input)}",
        f"output={_output(contract.output)}",
    ]
    if [leaf.name for leaf in leaves] != [default_name(leaf.path, len(leaves)) for leaf in leaves]:
        lines.append(f"names=[{', '.join(_quoted(leaf.name) for leaf in leaves)}]")
    if contract.max_chunk != MAX_CHUNK:
        lines.append(f"max_chunk={contract.max_chunk}")
    return "\n".join(["Streaming(", *(f"    {line}," for line in lines), ")"])


def _start(module: nn.Module, start: Callable[[int], Any], leaves: Sequence[Leaf], treespec: pytree.TreeSpec) -> str:
    if getattr(start, "__self__", None) is module:
        return f"module.{start.__name__}"
    if all(leaf.fill is not None for leaf in leaves):
        tree = pytree.tree_unflatten([_Code(_filled(leaf)) for leaf in leaves], treespec)
        return f"lambda batch: {tree!r}"
    return getattr(start, "__qualname__", "the_start")


def _filled(leaf: Leaf) -> str:
    sizes = [*map(str, leaf.shape[: leaf.batch_axis]), "batch", *map(str, leaf.shape[leaf.batch_axis :])]
    if str(leaf.dtype) == "torch.bool":
        return f"torch.full(({', '.join(sizes)},), {bool(leaf.fill)})"
    dtype = "" if str(leaf.dtype) == "torch.float32" else f", dtype={leaf.dtype}"
    if not leaf.fill:
        return f"torch.zeros({', '.join(sizes)}{dtype})"
    if leaf.fill == 1:
        return f"torch.ones({', '.join(sizes)}{dtype})"
    value = repr(leaf.fill) if leaf.dtype.is_floating_point else str(int(leaf.fill))
    value = f'float("{leaf.fill}")' if leaf.fill in (float("inf"), -float("inf")) else value
    return f"torch.full(({', '.join(sizes)},), {value}{dtype})"


def _input(spec: InputSpec) -> str:
    if spec.is_tokens:
        return f"InputSpec({_quoted(spec.name)}, dtype={_quoted(spec.dtype)}, vocab_size={spec.vocab_size})"
    dtype = "" if spec.dtype == "float32" else f", {_quoted(spec.dtype)}"
    return f"InputSpec({_quoted(spec.name)}, {spec.shape}{dtype})"


def _output(spec: OutputSpec) -> str:
    dtype = "" if spec.dtype == "float32" else f", {_quoted(spec.dtype)}"
    return f"OutputSpec({_quoted(spec.name)}, {spec.shape}{dtype})"


def _quoted(text: str) -> str:
    return f'"{text}"'
