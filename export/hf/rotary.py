"""Rotary positions of any size: a model's own frequencies, as integer phases.

RoFormer (Su et al. 2021, eq. 34). transformers multiplies a float32 position with a float32 frequency: at position
10^7 such an angle is noise. Here a model's rotary embedding keeps its frequencies and its scaling, and its angles are
exact phases (:func:`edgemem.memories.clock.phase_angles`), so a stream has no last position.

Symbols: ``F`` frequencies, ``D`` width of a head, ``Δ`` a distance between positions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgemem.errors import ExportError
from edgemem.memories.clock import phase_angles

Layout = Literal["halves", "pairs", "once"]
_BUFFER = "inv_freq"
_PROBED = (0, 1, 2, 5, 17)


@dataclass(frozen=True)
class RotaryTable:
    """The angles of one rotary embedding.

    Attributes:
        frequencies: The ``F`` frequencies, in radians per position.
        scaling: The factor of cosines and sines (YaRN's temperature).
        layout: How the ``F`` angles lie on the last axis: in two equal halves, each angle twice in a row, or once.
    """

    frequencies: tuple[float, ...]
    scaling: float
    layout: Layout

    @property
    def turns(self) -> tuple[float, ...]:
        """The frequencies in turns."""
        return tuple(frequency / (2 * math.pi) for frequency in self.frequencies)

    def spread(self, angle: Tensor) -> Tensor:
        """``[..., F]`` in the layout: ``[..., 2F]`` or ``[..., F]``."""
        if self.layout == "halves":
            return torch.cat([angle, angle], dim=-1)
        return angle.repeat_interleave(2, dim=-1) if self.layout == "pairs" else angle


class ExactRotary:
    """Replaces the forward of a transformers rotary embedding.

    Args:
        tables: Angles by layer type; ``None`` for a model with one kind of layer.
    """

    def __init__(self, tables: Mapping[str | None, RotaryTable]) -> None:
        self.tables = dict(tables)

    def __call__(self, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
        """Cosines and sines at ``position_ids`` int64 ``[B, T]``, each ``[B, T, F or 2F]`` in the dtype of ``x``."""
        table = self.tables[layer_type]
        if position_ids.dim() == 3:  # time, height and width of an image's patches: the same for text
            position_ids = position_ids[0]
        angle = table.spread(self.angles(position_ids, table))
        return (angle.cos() * table.scaling).to(x.dtype), (angle.sin() * table.scaling).to(x.dtype)

    def angles(self, position_ids: Tensor, table: RotaryTable) -> Tensor:
        """Angles at ``position_ids`` ``[B, T]``, modulo a full turn: float32 ``[B, T, F]``."""
        return phase_angles(position_ids, table.turns)


class DoubleRotary(ExactRotary):
    """The formula in float64: the reference for phases.

    In float32, as transformers computes it, the product of position and frequency is off by 1e-4 at position 2,000.
    """

    def angles(self, position_ids: Tensor, table: RotaryTable) -> Tensor:
        """Position times frequency, float64 ``[B, T, F]``."""
        frequencies = torch.tensor(table.frequencies, dtype=torch.float64, device=position_ids.device)
        return position_ids[..., None].double() * frequencies


class RotaryEmbeddings:
    """Every rotary embedding of a model, with frequencies that do not depend on the length of the text.

    Args:
        model: A transformers model.
        span: One more than the largest distance between a query and a key; ``None`` if it has no limit.

    Raises:
        ExportError: An embedding's frequencies depend on the length of the text within that span, or its output has
            an unknown form.
    """

    def __init__(self, model: nn.Module, span: int | None) -> None:
        self._tables: list[tuple[nn.Module, dict[str | None, RotaryTable]]] = []
        for name, module in model.named_modules():
            kinds = _layer_types(module)
            if kinds:
                self._tables.append((module, {kind: _fixed_table(name, module, kind, span) for kind in kinds}))

    @property
    def tables(self) -> tuple[RotaryTable, ...]:
        """The tables of all embeddings."""
        return tuple(table for _, tables in self._tables for table in tables.values())

    def install(self, form: type[ExactRotary] = ExactRotary) -> None:
        """Let every embedding compute its angles in that form."""
        for module, tables in self._tables:
            module.forward = form(tables)  # type: ignore[method-assign, assignment]

    @contextlib.contextmanager
    def in_double(self) -> Iterator[None]:
        """Angles in float64, within the context."""
        self.install(DoubleRotary)
        try:
            yield
        finally:
            self.install()


def _layer_types(module: nn.Module) -> list[str | None]:
    names = [name for name, _ in module.named_buffers(recurse=False) if name.endswith(_BUFFER)]
    kinds = [name.removesuffix(_BUFFER).removesuffix("_") for name in names]
    return [kind or None for kind in kinds if not kind.endswith("original")]


def _fixed_table(name: str, module: Any, kind: str | None, span: int | None) -> RotaryTable:
    prefix = "" if kind is None else f"{kind}_"
    types: Any = getattr(module, "rope_type", "default")
    rope_type = types if kind is None else types[kind]
    buffer: Tensor = getattr(module, prefix + _BUFFER)
    if rope_type in ("dynamic", "longrope"):
        parameters = module.config.rope_parameters if kind is None else module.config.rope_parameters[kind]
        trained = parameters.get("original_max_position_embeddings") or module.config.max_position_embeddings
        if span is None or span > trained:
            if rope_type == "dynamic" or span is None:
                raise ExportError(
                    f"{name}: {rope_type} rotary positions change with the length of the text beyond {trained} tokens.",
                    hint=f"Bound the past to {trained}: a window with its sinks, or --max-length, of at most that.",
                )
            buffer.copy_(_long_frequencies(module, kind, trained))
        # Now the frequencies no longer depend on the length.
        module.rope_type = "default" if kind is None else {**types, kind: "default"}
    scaling = float(getattr(module, f"{prefix}attention_scaling", 1.0))
    frequencies = tuple(buffer.double().tolist())
    return RotaryTable(frequencies, scaling, _layout(name, module, kind, frequencies, scaling))


def _long_frequencies(module: Any, kind: str | None, trained: int) -> Tensor:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, _ = ROPE_INIT_FUNCTIONS["longrope"](module.config, None, seq_len=trained + 1, layer_type=kind)
    return frequencies


def _layout(name: str, module: nn.Module, kind: str | None, frequencies: tuple[float, ...], scaling: float) -> Layout:
    """The embedding's layout of angles, found by calling it for a few positions."""
    positions = torch.tensor([_PROBED])
    arguments = {} if kind is None else {"layer_type": kind}
    try:
        with torch.no_grad():
            given = module(torch.zeros(1, 1), position_ids=positions, **arguments)
    except Exception as error:
        raise ExportError(f"{name} cannot be called for positions: {type(error).__name__}: {error}") from error
    angle = positions[..., None].double() * torch.tensor(frequencies, dtype=torch.float64)
    layouts: tuple[Layout, ...] = ("halves", "pairs", "once")
    for layout in layouts:
        spread = RotaryTable(frequencies, scaling, layout).spread(angle)
        if (
            isinstance(given, tuple)
            and len(given) == 2
            and all(
                part.shape == spread.shape and torch.allclose(part.double(), wanted * scaling, atol=1e-4)
                for part, wanted in zip(given, (spread.cos(), spread.sin()), strict=True)
            )
        ):
            return layout
    raise ExportError(f"{name} ({type(module).__name__}) returns rotary positions in an unknown form.")


@dataclass(frozen=True)
class Rotation:
    """How one layer rotates its queries and keys.

    Attributes:
        frequencies: Radians per position, negative if the layer rotates backwards; none if it does not use positions.
        pairs: Whether neighbours ``(2f, 2f + 1)`` are rotated together, rather than ``(f, f + F)``.
        start: First of the ``2F`` elements of a head that are rotated.
    """

    frequencies: tuple[float, ...] = ()
    pairs: bool = False
    start: int = 0

    @property
    def turns(self) -> tuple[float, ...]:
        """The frequencies in turns."""
        return tuple(frequency / (2 * math.pi) for frequency in self.frequencies)

    def turn(self, x: Tensor, angle: Tensor) -> Tensor:
        """Rotate ``x`` [..., D] by ``angle`` [..., F], which has as many axes as ``x``; computed in float32."""
        if not self.frequencies:
            return x
        end = self.start + 2 * len(self.frequencies)
        before, turned, behind = x[..., : self.start], x[..., self.start : end].to(angle.dtype), x[..., end:]
        first, second = (turned[..., 0::2], turned[..., 1::2]) if self.pairs else torch.chunk(turned, 2, dim=-1)
        cos, sin = angle.cos(), angle.sin()
        both = (first * cos - second * sin, second * cos + first * sin)
        turned = (torch.stack(both, dim=-1).flatten(-2) if self.pairs else torch.cat(both, dim=-1)).to(x.dtype)
        parts = [part for part in (before, turned, behind) if part.shape[-1]]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else turned


def find_rotation(tables: tuple[RotaryTable, ...], x: Tensor, moved: Tensor, distance: int) -> Rotation | None:
    """The rotation from ``x`` to ``moved``, among those that the tables allow.

    Args:
        tables: The model's rotary tables.
        x: Queries of some layer ``[B, H, T, D]``.
        moved: The same queries at positions ``distance`` later.
        distance: ``Δ``.

    Returns:
        ``None`` if there is none.
    """
    width = x.shape[-1]
    candidates = [Rotation()]
    for table in dict.fromkeys(tables):
        size = 2 * len(table.frequencies)
        backwards = tuple(-frequency for frequency in table.frequencies)  # nanochat
        for start in dict.fromkeys((0, width - size)) if size <= width else ():
            for frequencies in (table.frequencies, backwards):
                candidates += [Rotation(frequencies, pairs, start) for pairs in (False, True)]
    x, moved = x.double(), moved.double()

    def error(rotation: Rotation) -> float:
        angle = distance * torch.tensor(rotation.frequencies, dtype=torch.float64)
        return float((rotation.turn(x, angle) - moved).norm() / moved.norm().clamp(min=1e-30))

    best = min(candidates, key=error)
    return best if error(best) < _TOLERANCE else None


_TOLERANCE = 0.02
"""Relative; half precision is off by 0.004, and a wrong rotation by about 1."""
