"""Parity: streams of a bundle against torch's pass over the whole sequence.

A mismatch is traced to the first step and the first tensor that differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from edgemem.bundle import Bundle
from edgemem.contract import POSITION, Contract
from edgemem.dtypes import decode_bfloat16, encode_bfloat16
from edgemem.errors import VerificationError
from edgemem.export.sources import Source
from edgemem.protocol import TORCH_DTYPES, initial_tensors
from edgemem.runtimes import Session

FAR_POSITIONS = (2**24 - 1, 2**31 - 1, 10**12)

_COMPARED_BYTES = 256 << 20
"""Outputs of a whole sequence that are held in memory to compare with; those of a large vocabulary are thinned out."""

Progress = Callable[[str, int, int], None]
Stored = Callable[[], AbstractContextManager[tuple[Source, torch.nn.Module]]]
"""Gives, for the time of a block, the source with the bundle's weights and the module that holds the same states."""


@dataclass(frozen=True)
class Expected:
    """A source's outputs at some steps of a whole sequence.

    Attributes:
        steps: The steps, in order, int64 ``[S]``.
        outputs: ``[B, S, ...]``.
    """

    steps: np.ndarray[Any, Any]
    outputs: np.ndarray[Any, Any]

    @classmethod
    def of(cls, source: Source, x: torch.Tensor) -> Expected:
        """The outputs for sequences ``[B, T, ...]`` from position 0, at :func:`compared_steps`.

        One stream after the other: what a whole sequence takes is never held twice, and no stream can see another.
        """
        steps = compared_steps(source.contract, x.shape[0], x.shape[1])
        indices = torch.from_numpy(steps)
        with torch.inference_mode():
            return cls(steps, np.concatenate([source.reference(row[None], indices).float().numpy() for row in x]))

    def within(self, start: int, size: int) -> slice:
        """Which of the steps lie in a call of ``size`` steps from ``start`` on."""
        first, end = np.searchsorted(self.steps, (start, start + size))
        return slice(int(first), int(end))

    def streamed(self, session: Session, data: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """What a bundle gives for the same sequences at the same steps, fed in calls as long as they go."""
        got = np.empty_like(self.outputs)
        stream = session.stream(data.shape[0])
        done = 0
        for size in cut(data.shape[1], lambda: session.max_time):
            here = self.within(done, size)
            part = stream.feed(data[:, done : done + size], outputs="all")
            assert part is not None
            got[:, here] = part[:, self.steps[here] - done]
            done += size
        return got


def compared_steps(contract: Contract, batch: int, steps: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The time steps whose outputs are compared: all, or so many as memory should hold, the first and the last too."""
    most = _COMPARED_BYTES // (4 * batch * math.prod(contract.output.shape))
    return np.unique(np.linspace(0, steps - 1, min(steps, max(most, 64))).astype(np.int64))


def chunkings(bundle: Bundle, steps: int, seed: int) -> Iterator[tuple[str, list[int]]]:
    """Ways to cut ``steps`` into calls: as long as they go, all of three, and a random mix."""
    longest = min(bundle.max_time, bundle.contract.max_chunk, steps)
    if longest == 1:
        return
    yield f"chunks of {longest}", cut(steps, lambda: longest)
    if longest > 3:
        yield "chunks of 3", cut(steps, lambda: 3)
        generator = np.random.default_rng(seed)
        yield f"mixed chunks of 1 to {longest}", cut(steps, lambda: int(generator.integers(1, longest + 1)))


def cut(steps: int, size: Callable[[], int]) -> list[int]:
    """Calls of ``size()`` steps each, of ``steps`` in all."""
    sizes: list[int] = []
    while (left := steps - sum(sizes)) > 0:
        sizes.append(min(left, size()))
    return sizes


class FarCall:
    """One call from a synthetic state at a far position, and torch's outputs.

    Args:
        bundle: The bundle that will get the same call.
        module: What it was exported from.
        data: ``[B, T, ...]``, of which the call takes the first steps.
        position: Of the first stream; every other stream of the batch has its own.
    """

    def __init__(self, bundle: Bundle, module: torch.nn.Module, data: np.ndarray[Any, Any], position: int) -> None:
        contract = bundle.contract
        self.position = position
        self.part = data[:, : min(bundle.max_time, 5)]
        generator = torch.Generator().manual_seed(position % 2**31)
        self.state = {
            name: torch.rand(value.shape, generator=generator).to(value.dtype) + 0.5
            for name, value in initial_tensors(contract, data.shape[0]).items()
        }
        self.state[POSITION] = torch.tensor([position + 7 * row for row in range(data.shape[0])])
        # A graph in half precision keeps some states narrower than the module.
        dtypes = {spec.name: TORCH_DTYPES[spec.dtype] for spec in module.contract()}  # type: ignore[operator]
        wanted = {name: value.to(dtypes.get(name, value.dtype)) for name, value in self.state.items()}
        with torch.inference_mode():
            self.expected = module(_tensor(self.part, contract), wanted)[0].float().numpy()


class Comparison:
    """Streams the same data through the bundle in different ways, and compares with the full-sequence outputs."""

    def __init__(
        self,
        session: Session,
        stored: Stored,
        data: np.ndarray[Any, Any],
        expected: Expected,
        tolerance: float,
    ) -> None:
        self.session = session
        self.stored = stored
        self.data = data
        self.expected = expected
        self.tolerance = tolerance

    def stream(self, sizes: list[int], name: str, progress: Progress | None) -> float:
        """Feed the data in calls of ``sizes``; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        stream = self.session.stream(self.data.shape[0])
        worst, done = 0.0, 0
        for size in sizes:
            part = self.data[:, done : done + size]
            got = stream.step(part[:, 0])[:, None] if size == 1 else stream.feed(part, outputs="all")
            assert got is not None
            worst = max(worst, self._held(got, done, name, sizes))
            done += size
            if progress is not None:
                progress(name, done, self.data.shape[1])
        return worst

    def _held(self, got: np.ndarray[Any, Any], start: int, name: str, sizes: list[int]) -> float:
        """The largest error of a call's outputs, at those of its steps that are compared."""
        here = self.expected.within(start, got.shape[1])
        steps = self.expected.steps[here]
        if not steps.size:
            return 0.0
        error = self._error(got[:, steps - start], self.expected.outputs[:, here])
        if not (error <= self.tolerance).all():  # NaN is not within the tolerance either
            first = int(np.argmax(~(error <= self.tolerance)))
            self._fail(name, sizes, int(steps[first]), float(error[first]))
        return float(error.max())

    def from_position(self, call: FarCall) -> float:
        """The same call in the engine; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        contract = self.session.contract
        stream = self.session.stream(call.part.shape[0])
        stream.load_state({spec.name: _array(call.state[spec.name]) for spec in contract}, call.state[POSITION].numpy())
        got = stream.feed(call.part, outputs="all")
        assert got is not None
        error = self._error(got, call.expected)
        if not (error <= self.tolerance).all():
            raise VerificationError(
                f"{contract.output.name} differs by {error.max():.2e} from torch's in a call from position "
                f"{call.position} (tolerance {self.tolerance:.0e}): a counter is not exact."
            )
        return float(error.max())

    @staticmethod
    def _error(got: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Largest error of each time step, in the scale of ``1 + |expected|``: ``[T]``."""
        error = np.abs(got.astype(np.float64) - expected) / (1 + np.abs(expected))
        return np.asarray(error.reshape(error.shape[0], error.shape[1], -1).max(axis=(0, 2)))

    def _fail(self, name: str, sizes: list[int], step: int, error: float) -> None:
        """Stream again beside torch's own step to find the first tensor that differs, and raise."""
        first = self._first_difference(sizes, step)
        where = f"the first tensor to differ is {first}" if first else "every state agrees with torch's own step"
        raise VerificationError(
            f"{name}: {self.session.contract.output.name} at step {step} differs by {error:.2e} from torch's "
            f"full-sequence pass (tolerance {self.tolerance:.0e}); {where}.",
            hint="If torch's own step differs from its full-sequence pass too, the module's two forms disagree."
            if not first
            else None,
        )

    def _first_difference(self, sizes: list[int], last: int) -> str | None:
        from edgemem.runtimes.torch_reference import TorchSession

        batch = self.data.shape[0]
        ours = self.session.stream(batch)
        with self.stored() as (_, module):
            contract = replace(self.session.contract, states=module.contract().states)  # type: ignore[operator]
            theirs = TorchSession(contract, module).stream(batch)
            done = 0
            for size in sizes:
                part = self.data[:, done : done + size]
                ours.feed(part, outputs="none")
                theirs.feed(part, outputs="none")
                reference = theirs.state()
                for name, value in ours.state().items():
                    if self.session.contract[name].dtype == "bfloat16":
                        value = decode_bfloat16(value)
                    wanted = reference[name].astype(np.float64)
                    error = np.abs(value.astype(np.float64) - wanted) / (1 + np.abs(wanted))
                    if not (error <= self.tolerance).all():
                        return f"{name} after step {done + size - 1} (by {error.max():.2e})"
                done += size
                if done > last:
                    return None
        return None


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A state as runtimes take it: bfloat16 as its bits."""
    if tensor.dtype == torch.bfloat16:
        return encode_bfloat16(tensor.float().numpy())
    return np.asarray(tensor.numpy())


def _tensor(data: np.ndarray[Any, Any], contract: Contract) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(data)).to(TORCH_DTYPES[contract.input.dtype])


def far_positions(contract: Contract) -> tuple[int, ...]:
    """Where counters are tried: nowhere, if there are none or if the stream ends before."""
    counts = contract.position == "input" or any(spec.name == POSITION for spec in contract)
    return FAR_POSITIONS if counts and contract.has_fixed_size and contract.max_position is None else ()
