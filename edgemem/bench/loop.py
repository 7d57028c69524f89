"""The loop that is measured: the loop of ``edgemem run`` on one stream."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract
from edgemem.errors import NonFiniteError
from edgemem.runtimes import Stream
from edgemem.text.sampling import Sampler

_ROWS = 256


class Inputs:
    """Chooses each step's input as ``edgemem run`` does: a token drawn from the logits, or the next row of features.

    Draws and features (standard normal noise) have fixed seeds. The cost of a step does not depend on them.
    """

    def __init__(self, contract: Contract) -> None:
        spec = contract.input
        rng = np.random.default_rng(0)
        self._rows: NDArray[Any]
        if spec.vocab_size is None:
            noise = rng.standard_normal((_ROWS, *spec.shape), dtype=np.float32)
            self._rows = noise if spec.dtype == "bfloat16" else noise.astype(spec.dtype)
        else:
            self._rows = rng.integers(0, spec.vocab_size, _ROWS, dtype=np.int64)
        # A model whose output is not one score for each token gets random tokens.
        has_logits = spec.is_tokens and contract.output.shape == (spec.vocab_size,)
        self._sampler = Sampler(seed=0) if has_logits else None
        self._next = 0

    def first(self) -> Any:
        """The input of the first step: a token id, or features ``[F]``."""
        row = self._rows[self._next]
        self._next = (self._next + 1) % _ROWS
        return row if row.ndim else int(row)

    def after(self, output: NDArray[Any]) -> Any:
        """The input that follows ``output`` (``[1, *output.shape]``)."""
        return self.first() if self._sampler is None else self._sampler(output[0])

    def sequence(self, length: int) -> NDArray[Any]:
        """A long input: tokens ``[T]`` or features ``[T, F]``."""
        return np.take(self._rows, np.arange(length) % _ROWS, axis=0)


class Loop:
    """The loop of ``edgemem run`` on one stream: :meth:`step`, :meth:`choose`, :meth:`step`, …

    Attributes:
        output: The last output ``[1, *output.shape]``; ``None`` before the first step.
    """

    def __init__(self, stream: Stream, contract: Contract) -> None:
        self.stream = stream
        self.inputs = Inputs(contract)
        self._limit = contract.max_position
        self._x = self.inputs.first()
        self.output: NDArray[Any] | None = None

    def step(self) -> None:
        """``stream.step`` and nothing else: this is what is timed."""
        self.output = self.stream.step(self._x)

    def choose(self) -> None:
        """Choose the next input from the last output; reset a stream that reached the model's longest length."""
        if self.output is not None:
            self._x = self.inputs.after(self.output)
        if self._limit is not None and self.stream.position >= self._limit:
            self.stream.reset()

    def check(self) -> None:
        """Refuse to measure nonsense.

        Raises:
            NonFiniteError: The last output holds NaN or infinity.
        """
        if self.output is not None and not np.isfinite(self.output).all():
            raise NonFiniteError(
                f"at position {self.stream.position} the model outputs NaN or infinity: its latency means nothing.",
                hint="Find the first such step with: edgemem check",
            )
