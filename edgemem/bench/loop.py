"""The loop that is measured: the loop of ``edgemem run`` on one stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.contract import Contract, InputSpec
from edgemem.dtypes import element_type
from edgemem.errors import NonFiniteError
from edgemem.runtimes import Session, Stream
from edgemem.text import Sampler, generate

_ROWS, _FEW = 256, 2


class Inputs:
    """Chooses each step's input as ``edgemem run`` does: a token drawn from the logits, or the next items of the data.

    Draws and data (normal noise) have fixed seeds. The cost of a step does not depend on them.

    Attributes:
        sampler: Draws tokens; ``None`` for a model whose output is not one logit for each token.
    """

    def __init__(self, contract: Contract) -> None:
        rng = np.random.default_rng(0)
        self._is_plain = contract.is_plain
        self._rows = {spec.name: _noise(spec, rng) for spec in contract.data}
        spec = contract.input
        self._first = spec.name
        has_logits = contract.is_plain and spec.is_tokens and contract.output.shape == (spec.vocab_size,)
        self.sampler = Sampler(seed=0) if has_logits else None
        self._next = 0

    def first(self) -> Any:
        """The input of the first step: a token id, or features ``[F]``; of other models, the items by name."""
        at = self._next
        self._next = (at + 1) % _ROWS
        if not self._is_plain:
            return self._shown({name: rows[at] for name, rows in self._rows.items()})
        row = self._rows[self._first][at, 0]
        return row if row.ndim else int(row)

    def after(self, output: Any) -> Any:
        """The input that follows ``output`` (``[1, *output.shape]``, or outputs by name)."""
        return self.first() if self.sampler is None else self.sampler(output[0])

    def sequence(self, length: int) -> Any:
        """A long input of that many steps: tokens ``[T]`` or features ``[T, F]``; of other models, items by name."""
        taken = {name: np.take(rows, np.arange(length) % _ROWS, axis=0) for name, rows in self._rows.items()}
        return self._shown({name: rows.reshape(-1, *rows.shape[2:]) for name, rows in taken.items()})

    def _shown(self, items: dict[str, NDArray[Any]]) -> Any:
        return items[self._first] if len(items) == 1 else items


def _noise(spec: InputSpec, rng: np.random.Generator) -> NDArray[Any]:
    """Items of :data:`_ROWS` steps, ``[rows, step_items, *item_shape]``."""
    shape = (_ROWS, spec.step_items, *spec.item_shape)
    if not element_type(spec.dtype).is_float:
        return rng.integers(0, spec.vocab_size or _FEW, shape, dtype=np.int64).astype(spec.dtype)
    noise = rng.standard_normal(shape, dtype=np.float32)
    return noise if spec.dtype == "bfloat16" else noise.astype(spec.dtype)


def new_stream(session: Session, batch: int = 1) -> Stream:
    """Streams at position 0; what holds for a whole stream is noise."""
    rng = np.random.default_rng(1)
    held = {spec.name: rng.standard_normal((batch, *spec.shape)).astype(spec.dtype) for spec in session.contract.held}
    return session.stream(batch, held=held or None)


def batched(session: Session, batch: int) -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of several streams in one call, with the same input again and again, and what is called after it.

    Args:
        session: The model.
        batch: Streams in one call.

    Raises:
        EdgememError: The model does not take so many.
    """
    stream, x = new_stream(session, batch), Inputs(session.contract).first()
    stacked = {name: np.stack([rows] * batch) for name, rows in (x if isinstance(x, dict) else {"": x}).items()}
    several = stacked if isinstance(x, dict) else stacked[""]
    stream.step(several)
    limit = session.contract.max_position

    def begin_again() -> None:
        if limit is not None and stream.positions.max() >= limit:
            stream.reset()

    return lambda: stream.step(several), begin_again


class Loop:
    """The loop of ``edgemem run`` on one stream.

    :meth:`turns` runs it as users do: :func:`edgemem.text.generate` draws the tokens. A contender that takes turns with
    others calls :meth:`step`, :meth:`choose`, :meth:`step`, … instead.

    Attributes:
        output: The last output ``[1, *output.shape]``, or outputs by name; ``None`` before the first step.
        step_ns: Nanoseconds of the last ``stream.step`` of :meth:`turns`.
    """

    def __init__(self, stream: Stream, contract: Contract) -> None:
        self.stream = stream
        self.inputs = Inputs(contract)
        self.output: Any = None
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
        outputs = self.output.values() if isinstance(self.output, Mapping) else [self.output]
        if self.output is not None and not all(np.isfinite(output).all() for output in outputs):
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

    def step(self, x: Any) -> Any:
        loop = self._loop
        start = time.perf_counter_ns()
        loop.output = loop.stream.step(x)
        loop.step_ns = time.perf_counter_ns() - start
        return loop.output
