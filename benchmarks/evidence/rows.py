"""The rows of the table: a memory and what of it is turned so that a stream's state takes a number of bytes.

Every model but Mamba-2 is a decoder of edgemem with two layers of width 64. Where a memory needs more parameters than a
window, the hidden width of the MLP gives way, so that all models have as many parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from edgemem.decoder_config import DecoderConfig, MemorySpec
from edgemem.export import Source, from_module
from edgemem.models import Decoder
from evidence.mamba2 import Mamba2, Mamba2Shape

Model = Decoder | Mamba2
KIB = 1024
LAYERS, WIDTH, HEADS, HEAD_WIDTH, HIDDEN = 2, 64, 2, 32, 192
TOLERANCE = 0.05
"""How far a model's bytes of state and its parameters may be from those wanted, as a share."""


@dataclass(frozen=True)
class Made:
    """One layer's memories at some budget.

    Attributes:
        memory: The list.
        turned: What was turned to meet the budget, in words.
        heads: Heads, which are key/value heads too.
        head_width: Their width.
    """

    memory: list[MemorySpec]
    turned: str
    heads: int = HEADS
    head_width: int = HEAD_WIDTH

    def model(self, seed: int, **ends: Any) -> Decoder:
        """A decoder with the seed's weights; ``ends``: what it takes and gives, such as ``vocab_size=256``."""
        config = DecoderConfig(
            WIDTH, LAYERS, self.heads, self.memory, head_dim=self.head_width, mlp_hidden=HIDDEN, **ends
        )
        plain = replace(config, memory=[_window(1)], heads=HEADS, head_dim=HEAD_WIDTH)
        surplus = parameters(Decoder(config)) - parameters(Decoder(plain))
        torch.manual_seed(seed)
        return Decoder(replace(config, mlp_hidden=HIDDEN - round(surplus / (LAYERS * 3 * WIDTH))))


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        key: Its name in files and on the command line.
        label: Its name on the page.
        make: The memories for so many slots of a window; ``None``: it cannot spend that budget.
        main: Whether it is among those that the smallest and the largest budget are measured for.
        grows: Whether its state grows: it has no budget.
    """

    key: str
    label: str
    make: Callable[[int], Made | Mamba2Shape | None]
    main: bool = False
    grows: bool = False


def slots_of(budget: int) -> int:
    """How many pairs of a layer ``budget`` bytes of a stream's state hold."""
    return budget // (LAYERS * 8 * HEADS * HEAD_WIDTH)


def _window(slots: int) -> MemorySpec:
    return {"type": "window", "window": slots}


def _with_slots(taken: int, *others: MemorySpec) -> Callable[[int], Made | None]:
    """A window beside memories that take as many bytes as ``taken`` of its pairs."""

    def make(slots: int) -> Made | None:
        window = slots - taken
        return Made([*others, _window(window)], f"window {window}") if window > 0 else None

    return make


def _sinks(slots: int) -> Made:
    sinks = min(4, slots // 4)
    memory: list[MemorySpec] = [{"type": "sinks", "slots": sinks}, _window(slots - sinks)]
    return Made(memory, f"{sinks} sinks, window {slots - sinks}")


def _halves(kind: str) -> Callable[[int], Made | None]:
    def make(slots: int) -> Made:
        half = slots // 2
        return Made([_window(half), {"type": kind, "window": half}], f"window {half}, average of {half}")

    return make


def _compressed(**options: Any) -> Callable[[int], Made | None]:
    rate = 4

    def make(slots: int) -> Made | None:
        window = slots // 2
        queue = slots - window - -(-window // rate) - 2
        if queue < 1:
            return None
        spec: MemorySpec = {"type": "compressed", "slots": queue, "rate": rate, **options}
        return Made([_window(window), spec], f"window {window}, {queue} slots of {rate} pairs")

    return make


def _matrix(
    sizes: dict[int, tuple[int, int, int]], *specs: MemorySpec, beside: str = ""
) -> Callable[[int], Made | None]:
    """A matrix memory by slots: heads, their width, and the pairs kept beside it (in ``beside``)."""

    def make(slots: int) -> Made | None:
        if slots not in sizes:
            return None
        heads, width, pairs = sizes[slots]
        kept: list[MemorySpec] = []
        words = f"{heads} head{'s' * (heads > 1)} of {width}"
        if pairs:
            kept = [_window(pairs) if beside == "window" else {"type": beside, "slots": pairs}]
            words += f", {'window' if beside == 'window' else 'exact slots'} {pairs}"
        return Made([*specs, *kept], words, heads, width)

    return make


LINEAR: MemorySpec = {"type": "linear_attention"}
DELTA: MemorySpec = {"type": "gated_delta"}
GEOMETRIC: list[MemorySpec] = [{"type": "geometric", "decay": 1 - 1 / steps} for steps in (8, 32, 128, 512)]

ROWS = {
    row.key: row
    for row in (
        Row("window", "window", _with_slots(0), main=True),
        Row("sinks", "sinks + window", _sinks, main=True),
        Row("cumulative", "window + cumulative", _with_slots(2, {"type": "cumulative"}), main=True),
        Row("geometric", "window + 4 geometric", _with_slots(4, *GEOMETRIC)),
        Row("gated_average", "window + gated average", _with_slots(1, {"type": "gated_average"})),
        Row("moving_average", "window + moving average", _halves("moving_average")),
        Row("weighted_average", "window + weighted average", _halves("weighted_average")),
        Row("compressed", "window + compressed (mean)", _compressed()),
        Row("compressed_learned", "window + compressed (learned)", _compressed(pooling="convolution")),
        Row("linear", "linear attention", _matrix({16: (2, 22, 0), 64: (2, 44, 0)}, LINEAR)),
        Row(
            "window_linear",
            "window + linear attention",
            _matrix({16: (2, 16, 15), 64: (2, 32, 31)}, LINEAR, beside="window"),
        ),
        Row(
            "delta",
            "gated delta",
            _matrix({4: (2, 16, 0), 16: (2, 32, 0), 64: (2, 64, 0), 256: (1, 182, 0)}, DELTA),
            main=True,
        ),
        Row(
            "window_delta",
            "window + gated delta",
            _matrix({4: (2, 12, 5), 16: (2, 24, 9), 64: (2, 48, 19), 256: (2, 64, 96)}, DELTA, beside="window"),
            main=True,
        ),
        Row("delta_exact", "gated delta + exact", _matrix({16: (2, 24, 9), 64: (2, 48, 18)}, DELTA, beside="exact")),
        Row("mamba2", "Mamba-2 (transformers)", {16: Mamba2Shape(108, 14), 64: Mamba2Shape(92, 78)}.get),
        Row("full", "full cache (grows)", lambda slots: Made([{"type": "full"}], "nothing"), grows=True),
    )
}
"""Every row, by its key."""


@dataclass(frozen=True)
class Variant:
    """A row at a budget.

    Attributes:
        row: The row.
        budget: Bytes of a stream's state; 0 for one that grows.
        made: What makes its models.
    """

    row: Row
    budget: int
    made: Made | Mamba2Shape

    def model(self, seed: int, **ends: Any) -> Model:
        """A model with the seed's weights; ``ends``: what it takes and gives, such as ``vocab_size=256``."""
        return self.made.model(seed, **ends)


def variant(key: str, budget: int) -> Variant | None:
    """A row at a budget; ``None`` if it cannot spend it."""
    row = ROWS[key]
    made = row.make(slots_of(budget))
    return None if made is None else Variant(row, 0 if row.grows else budget, made)


def source(model: Model, name: str) -> Source:
    """What is exported of a trained model."""
    return model.source(name) if isinstance(model, Mamba2) else from_module(model.eval(), name)


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns or was given."""
    return sum(parameter.numel() for parameter in model.parameters())
