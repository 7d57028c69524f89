"""Values of a graph: what made them, what they hold, and putting one in the place of another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Let all that uses ``old`` use ``new``, the graph's outputs too; ``new`` takes over its name, type and shape."""
    name, old.name = old.name, f"{old.name}.replaced"
    new.name, new.type, new.shape = name, old.type, old.shape
    new.meta.update(old.meta)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def used_once(value: ir.Value) -> bool:
    """Whether one node uses a value, and nothing else does."""
    return len(list(value.uses())) == 1 and not value.is_graph_output()


def made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that made a value, if it is this operator of ONNX."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def input_of(node: ir.Node | None, at: int) -> ir.Value | None:
    """An input of a node; ``None`` where it has none."""
    return None if node is None or len(node.inputs) <= at else node.inputs[at]


def without_absent_end(inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Inputs of a node, without those at the end that are absent."""
    given = [at for at, value in enumerate(inputs, 1) if value is not None]
    return list(inputs[: max(given, default=0)])


def constant(value: ir.Value | None) -> NDArray[Any] | None:
    """What a constant holds; ``None`` for any other value."""
    found = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if found is None else np.asarray(found.numpy())
