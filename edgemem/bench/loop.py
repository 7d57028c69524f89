"""The loop that is measured: the loop of ``edgemem run`` on one stream."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract
from edgemem.errors import NonFiniteError
from edgemem.runtimes import Stream
from edgemem.text import Sampler, generate

_ROWS = 256


class Inputs:
    """Chooses each step's input as ``edgemem run`` does: a token drawn from the logits, or the next row of features.

    Draws and features (standard normal noise) have fixed seeds. The cost of a step does not depend on them.

    Attributes:
        sampler: Draws tokens; ``None`` for a model whose output is not one logit for each token.
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
        has_logits = spec.is_tokens and contract.output.shape == (spec.vocab_size,)
        self.sampler = Sampler(seed=0) if has_logits else None
        self._next = 0

    def first(self) -> Any:
        """The input of the first step: a token id, or features ``[F]``."""
        row = self._rows[self._next]
        self._next = (self._next + 1) % _ROWS
        return row if row.ndim else int(row)

    def after(self, output: NDArray[Any]) -> Any:
        """The input that follows ``output`` (``[1, *output.shape]``)."""
        return self.first() if self.sampler is None else self.sampler(output[0])

    def sequence(self, length: int) -> NDArray[Any]:
        """A long input: tokens ``[T]`` or features ``[T, F]``."""
        return np.take(self._rows, np.arange(length) % _ROWS, axis=0)


class Loop:
    """The loop of ``edgemem run`` on one stream.

    :meth:`turns` runs it as users do: :func:`edgemem.text.generate` draws the tokens. A contender that takes turns with
    others calls :meth:`step`, :meth:`choose`, :meth:`step`, … instead.

    Attributes:
        output: The last output ``[1, *output.shape]``; ``None`` before the first step.
        step_ns: Nanoseconds of the last ``stream.step`` of :meth:`turns`.
    """

    def __init__(self, stream: Stream, contract: Contract) -> None:
        self.stream = stream
        self.inputs = Inputs(contract)
        self.output: NDArray[Any] | None = None
        self.step_ns = 0
        self._limit = contract.max_position
        self._x = self.inputs.first()

    def turns(self) -> Iterator[object]:
        """Endless turns of a step and the choice of the next input. A model of tokens reads a prompt of one now."""
        if self.inputs.sampler is None:
            return self._predict()
        turns = generate(_Timed(self), [self._x], self.inputs.sampler)
        next(turns)
        self._begin_again()
        return self._generate(turns)

    def step(self) -> None:
        """``stream.step`` and nothing else."""
        self.output = self.stream.step(self._x)

    def choose(self) -> None:
        """Choose the next input from the last output."""
        if self.output is not None:
            self._x = self.inputs.after(self.output)
        self._begin_again()

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

    def _begin_again(self) -> None:
        """Reset a stream that has reached the longest position of the model."""
        if self._limit is not None and self.stream.position >= self._limit:
            self.stream.reset()

    def _generate(self, turns: Iterator[object]) -> Iterator[object]:
        for turn in turns:
            self._begin_again()
            yield turn

    def _predict(self) -> Iterator[object]:
        timed = _Timed(self)
        while True:
            self._x = self.inputs.after(timed.step(self._x))
            self._begin_again()
            yield None


class _Timed:
    """The stream of a loop for :func:`edgemem.text.generate`: times each step and keeps its output."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.feed = loop.stream.feed
        self.step_top = loop.stream.step_top

    def step(self, x: Any) -> NDArray[Any]:
        loop = self._loop
        start = time.perf_counter_ns()
        loop.output = loop.stream.step(x)
        loop.step_ns = time.perf_counter_ns() - start
        return loop.output
