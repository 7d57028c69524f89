"""How a model's attention depends on positions: learned embeddings, or rotations of queries and keys."""

from __future__ import annotations

from typing import Any

from torch import nn

from edgemem.errors import ExportError
from edgemem.export.hf.attention_calls import SHIFT, AttentionCall, record_calls
from edgemem.export.hf.bound import Bound, MemoryBound
from edgemem.export.hf.rotary import RotaryTable, Rotation, find_rotation

_EQUAL, _ROUNDED = 1e-6, 0.05
"""Relative differences; half precision rounds to 0.004, layer upon layer."""


def check_positions(
    model: nn.Module, calls: list[AttentionCall], moved: list[AttentionCall], max_length: int | None
) -> None:
    """Refuse a model with absolute positions, unless the stream ends before the last of them.

    Args:
        model: A transformers model.
        calls: Its attention calls for a few tokens.
        moved: The same for the same tokens, :data:`~edgemem.export.hf.attention_calls.SHIFT` positions later.
        max_length: The largest number of positions of a stream; ``None`` for no limit.

    Raises:
        ExportError: The stream would go beyond the positions that the model has.
    """
    layer = _first_absolute(calls, moved)
    if layer is not None:  # Griffin only tells position 0, where it starts anew, from all others
        layer = _first_absolute(moved, record_calls(model, 2 * SHIFT))
    if layer is None:
        return
    config: Any = model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]
    last = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    if max_length is None:
        raise ExportError(
            f"{type(model).__name__} reads its absolute positions ({layer} changes with them): it cannot stream "
            "beyond the positions that it was trained with.",
            hint=f"Use --max-length N, of at most {last}." if last else "Use --max-length N.",
        )
    if last is not None and max_length > last:
        raise ExportError(f"{type(model).__name__} has {last} positions, --max-length asks for {max_length}.")


def _first_absolute(calls: list[AttentionCall], moved: list[AttentionCall]) -> str | None:
    """The first layer whose values change with the position: then positions are added to the model's input.

    Before the first attention, values with relative positions are equal to the last bit in both runs. After it,
    rotations leave rounding errors.
    """
    allowed = _EQUAL
    for call, later in zip(calls, moved, strict=True):
        if float((call.v - later.v).float().norm() / call.v.float().norm().clamp(min=1e-30)) > allowed:
            return call.name
        allowed = _ROUNDED
    return None


def layer_rotation(
    call: AttentionCall, later: AttentionCall, tables: tuple[RotaryTable, ...], bound: Bound | None
) -> Rotation | None:
    """How a layer rotates its queries and keys; ``None`` if its memories need not know.

    Args:
        call: A call of the layer.
        later: The same for the same tokens at later positions.
        tables: The model's rotary tables.
        bound: What bounds the layer.

    Raises:
        ExportError: The memories need the rotation, and it is not one of those that the tables allow.
    """
    if not isinstance(bound, MemoryBound) or not (bound.summary or bound.sinks):
        return None
    rotation = find_rotation(tables, call.q, later.q, SHIFT)
    if rotation is None and (bound.summary or bound.positions == "slot"):
        raise ExportError(
            f"{call.name}: edgemem does not recognise how its queries rotate with the position.",
            hint="Place sinks by absolute positions: positions=absolute." if not bound.summary else None,
        )
    return rotation
