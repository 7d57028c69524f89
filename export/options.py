"""How a bundle is exported."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.dtypes import FloatDType
from edgemem.precision import DEFAULT_BLOCK_SIZE, Precision


@dataclass(frozen=True)
class ExportOptions:
    """How a bundle is exported.

    Attributes:
        sealed: Write the rings inside the graph: every state is a whole input and a whole output.
        max_chunk: Most time steps of one call; ``None``: as many as the model allows.
        dtype: ``"fp32"``, ``"fp16"`` or ``"bf16"``: of weights and matrix products. ``None``: the dtype in the
            decoder's configuration, or ``"fp32"``.
        weights: ``"int8"`` or ``"int4"`` stores the large matrices as scaled integers.
        block_size: Rows of a matrix that share a scale: 16, 32, 64 or 128.
        memory_dtype: For a model that computes in float32: ``"fp16"`` stores its rings in 16 bits, ``"int8"`` in 8
            with a float32 scale for each slot.
        verify: Compare the bundle with the model (see :mod:`edgemem.export.verify.check`).
        steps: Steps of that check; ``None``: twice past the longest window.
        allow_change: Write the bundle even if reduced precision changes the outputs more than it should, and mark it
            as unverified: to measure a device before the model is trained.

    Raises:
        ExportError: ``dtype``, ``weights``, ``block_size`` or ``memory_dtype`` has an unknown value.
    """

    sealed: bool = False
    max_chunk: int | None = None
    dtype: str | None = None
    weights: str | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    memory_dtype: str | None = None
    verify: bool = True
    steps: int | None = None
    allow_change: bool = False

    def __post_init__(self) -> None:
        self.precision("float32")

    def precision(self, default: FloatDType) -> Precision:
        """The precision that the options ask for; ``default`` is the dtype if they name none."""
        return Precision.of(self.dtype, self.weights, self.block_size, self.memory_dtype, default=default)
