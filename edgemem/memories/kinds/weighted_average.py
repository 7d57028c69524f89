"""A weighted mean of the newest pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgemem.errors import ConfigError
from edgemem.memories.base import About, Dims, is_number
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import BIAS_COUNTED, Bias, RingAverage, both


@register_memory
class WeightedMovingAverage(RingAverage):
    """``Mem_i = (Σ β_a k_{i-a} / Σ β_a, Σ β_a v_{i-a} / Σ β_a)``, ``a`` from 0 to ``min(i, W - 1)``.

    Args:
        dims: Sizes of the layer.
        window: ``W``.
        beta: ``W`` positive weights, the newest first; ``None`` learns one for each head and age (all 1 at first).
        bias: See :class:`Summary`.
    """

    type_name = "weighted_average"
    about = About(
        formula="a weighted mean of the last `W` pairs: `Σ β_a k_{i-a} / Σ β_a`, the same for `v`",
        use="one slot in place of a whole window, with weights by age. It saves reading, not memory.",
        nbytes="8*H*D*W",
        example=(
            {"type": "window", "window": 6},
            {"type": "weighted_average", "window": 7},
            {"type": "weighted_average", "window": 3, "beta": [3.0, 2.0, 1.0]},
        ),
        options={
            "window": "`W`",
            "beta": "`W` positive numbers, the newest first. Without it, each head learns one for each age",
            "bias": BIAS_COUNTED,
        },
    )

    def __init__(self, dims: Dims, window: int, beta: Sequence[float] | None = None, bias: Bias = "learned") -> None:
        super().__init__(dims, window, bias)
        if beta is None:
            self.log_beta = nn.Parameter(torch.zeros(dims.kv_heads, window))
            return
        # Within float32's range, with room for the sum.
        if (
            not isinstance(beta, list | tuple)
            or len(beta) != window
            or not all(is_number(b) and 1e-30 <= b <= 1e30 for b in beta)
        ):
            raise ConfigError(
                f"memory {self.type_name!r}: beta must hold {window} numbers from 1e-30 to 1e30, the newest first, "
                f"got {beta!r}."
            )
        self.log_beta = nn.Parameter(torch.tensor(beta).log().expand(1, -1).clone(), requires_grad=False)

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]]:
        """Its name in the operator, and ``log β`` of every age."""
        return self.native_name, (self.log_beta.float(),)

    def weights(self, age: Tensor, live: Tensor) -> Tensor:
        """``β[head, age]`` where live."""
        beta = self.log_beta.float().exp()[:, age[:, 0].clamp(0, self.window - 1)]  # [H or 1, B or 1, T, S]
        beta = torch.where(live, beta.transpose(0, 1), 0.0)
        return beta if beta.shape[1] == 1 else both(beta)
