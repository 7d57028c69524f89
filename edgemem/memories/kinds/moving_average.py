"""The mean of the newest pairs."""

from __future__ import annotations

from torch import Tensor

from edgemem.memories.base import About, Chunk
from edgemem.memories.registry import register_memory
from edgemem.memories.summary import BIAS_COUNTED, RingAverage


@register_memory
class MovingAverage(RingAverage):
    """``Mem_i = (Σ k_j / n, Σ v_j / n)`` over the last ``W`` pairs, ``n = min(i + 1, W)``."""

    type_name = "moving_average"
    about = About(
        formula="the mean of the last `W` pairs: `Σ k_j / n, Σ v_j / n`, `n = min(i + 1, W)`",
        use="one slot in place of a whole window. It needs as many bytes as the window, so it saves reading, "
        "not memory.",
        nbytes="8*H*D*W",
        example=(
            {"type": "window", "window": 6},
            {"type": "moving_average", "window": 9, "bias": "log_count"},
        ),
        options={
            "window": "`W`",
            "bias": BIAS_COUNTED,
        },
    )

    def native(self, x: Tensor | None, written: Tensor | None) -> tuple[str, tuple[Tensor, ...]]:
        """Its name in the operator."""
        return self.native_name, ()

    def weights(self, age: Tensor, live: Tensor) -> Tensor:
        """1 for every live entry."""
        return live.float()

    def mass(self, chunk: Chunk, betas: list[Tensor]) -> Tensor:
        """``n``, without a sum: TensorRT-RTX 1.7 does not compile a sum over a mask of ones."""
        return self.count(chunk)
