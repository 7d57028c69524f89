"""A mean of all pairs whose weights fall geometrically with age."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgemem.errors import ConfigError
from edgemem.memories.base import About, Chunk, Dims, is_number
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import BIAS, Bias, DecayingAverage


@register_memory
class GeometricAverage(DecayingAverage):
    """The weighted average with ``β_a = γ^a``, which needs only one pair.

    Args:
        dims: Sizes of the layer.
        decay: ``γ`` in (0, 1), one number or one for each key/value head; ``None`` learns one for each head.
        bias: ``"none"`` or ``"learned"``, see :class:`Summary`.
    """

    type_name = "geometric"
    about = About(
        formula="a weighted mean of all pairs: `Σ β_a k_{i-a} / Σ β_a`, the same for `v`, `β_a = γ^a`",
        use="for what drifts, on a fixed time scale. List several for several time scales.",
        nbytes="4*H*(2*D + 1)",
        example=(
            {"type": "window", "window": 6},
            {"type": "geometric"},
            {"type": "geometric", "decay": 0.9},
        ),
        options={
            "decay": "`γ` in (0, 1), one number or one for each head. Without it, each head learns its own, starting "
            "at time constants from 8 to 512 steps",
            "bias": BIAS,
        },
    )

    def __init__(self, dims: Dims, decay: float | Sequence[float] | None = None, bias: Bias = "learned") -> None:
        super().__init__(dims, bias)
        heads = dims.kv_heads
        # If learned: time constants from 8 to 512 steps, so that the heads start on different scales.
        values: list[float] = [1 - 2.0 ** -(3 + 6 * h / max(heads - 1, 1)) for h in range(heads)]
        if decay is not None:
            values = list(decay) if isinstance(decay, Sequence) else [decay] * heads
        if len(values) != heads or not all(is_number(value) and 0.0 < value < 1.0 for value in values):
            raise ConfigError(
                f"memory {self.type_name!r}: decay must be in (0, 1), one number or {heads}, got {decay}."
            )
        logits = torch.tensor([math.log(value / (1 - value)) for value in values])
        self.decay_logit = nn.Parameter(logits, requires_grad=decay is None)

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]]:
        """Its name in the operator, and ``log γ`` of every head."""
        return self.type_name, (self._log_decay(),)

    def decay(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """``log γ`` and 1."""
        log_a = self._log_decay()[None, :, None, None]
        return log_a, torch.ones_like(log_a)

    def _log_decay(self) -> Tensor:
        return F.logsigmoid(self.decay_logit.float())
