"""An adapter written out as Python, for a user to paste."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
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
    ignored: Sequence[str] = (),
) -> str:
    """The expression ``Streaming(module, ...)``.

    Args:
        module: The user's module; the expression calls it ``module``.
        start: Makes the initial state of a number of streams.
        contract: What the adapter takes, gives and carries.
        leaves: The tensors of the state.
        treespec: How they are nested.
        ignored: Paths of attributes that may change.
    """
    lines = [
        "module",
        f"state={_start(module, start, leaves, treespec)}",
        *_specs("inputs", contract.input_specs),
        *_specs("outputs", contract.output_specs),
    ]
    if [leaf.name for leaf in leaves] != [default_name(leaf.path, len(leaves)) for leaf in leaves]:
        lines.append(f"names=[{', '.join(_quoted(leaf.name) for leaf in leaves)}]")
    if contract.max_chunk != MAX_CHUNK:
        lines.append(f"max_chunk={contract.max_chunk}")
    if ignored:
        lines.append(f"ignore=[{', '.join(map(_quoted, ignored))}]")
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


def _specs(keyword: str, specs: Sequence[InputSpec | OutputSpec]) -> list[str]:
    """The argument ``inputs=`` or ``outputs=``: one specification, or a list with one a line."""
    if len(specs) == 1:
        return [f"{keyword}={_spec(specs[0])}"]
    inner = "".join(f"        {_spec(spec)},\n" for spec in specs)
    return [f"{keyword}=[\n{inner}    ]"]


def _spec(spec: InputSpec | OutputSpec) -> str:
    """The expression that makes a specification: its name, its shape, and what differs from the defaults."""
    derived = {"data": (), "held": ("time_axis",), "fixed": ("batch_axis", "time_axis")}
    skipped = ("name", "shape", *derived[getattr(spec, "role", "data")])
    shape = [str(spec.shape)] if spec.shape or isinstance(spec, OutputSpec) else []
    rest = [
        f"{field.name}={_quoted(value) if isinstance(value, str) else repr(value)}"
        for field in fields(spec)
        if field.name not in skipped and (value := getattr(spec, field.name)) != field.default
    ]
    return f"{type(spec).__name__}({', '.join([_quoted(spec.name), *shape, *rest])})"


def _quoted(text: str) -> str:
    return f'"{text}"'
