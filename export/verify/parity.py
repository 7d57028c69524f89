"""Parity: streams of a bundle against torch's pass over the whole sequence.

A mismatch is traced to the first step and the first tensor that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch

from edgemem.bundle import Bundle
from edgemem.contract import POSITION, Contract, StateSpec
from edgemem.dtypes import decode_bfloat16, encode_bfloat16
from edgemem.errors import VerificationError
from edgemem.export.sources import Source
from edgemem.export.verify.expected import Expected, cut
from edgemem.export.verify.sequences import Array, Sequences, by_step
from edgemem.export.verify.whole import host_outputs, module_input, outputs_of
from edgemem.protocol import TORCH_DTYPES, initial_tensors
from edgemem.runtimes import Session

FAR_POSITIONS = (2**24 - 1, 2**31 - 1, 10**12)

Progress = Callable[[str, int, int], None]
Stored = Callable[[], AbstractContextManager[tuple[Source, torch.nn.Module]]]
"""Gives, for the time of a block, the source with the bundle's weights and the module that holds the same states."""


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


class FarCall:
    """One call from a synthetic state at a far position, and torch's outputs.

    Args:
        bundle: The bundle that will get the same call.
        module: What it was exported from.
        given: Sequences, of which the call takes the first steps.
        position: Of the first stream; every other stream of the batch has its own.
    """

    def __init__(self, bundle: Bundle, module: torch.nn.Module, given: Sequences, position: int) -> None:
        contract = bundle.contract
        self.position = position
        self.part = given.first(min(bundle.max_time, 5))
        generator = torch.Generator().manual_seed(position % 2**31)
        self.state = {
            name: torch.rand(value.shape, generator=generator).to(value.dtype) + 0.5
            for name, value in initial_tensors(contract, given.batch).items()
        }
        self.state[POSITION] = torch.tensor([position + 7 * row for row in range(given.batch)])
        # A graph in half precision keeps some states narrower than the module.
        dtypes = {spec.name: TORCH_DTYPES[spec.dtype] for spec in module.contract()}  # type: ignore[operator]
        wanted = {name: value.to(dtypes.get(name, value.dtype)) for name, value in self.state.items()}
        with torch.inference_mode():
            output = module(module_input(contract, self.part, 0, self.part.steps), wanted)[0]
            self.expected = host_outputs(contract, outputs_of(contract, output, self.part.steps))


class Comparison:
    """Streams the same data through the bundle in different ways, and compares with the full-sequence outputs."""

    def __init__(
        self, session: Session, stored: Stored, given: Sequences, expected: Expected, tolerance: float
    ) -> None:
        self.session = session
        self.stored = stored
        self.given = given
        self.expected = expected
        self.tolerance = tolerance

    def stream(self, sizes: list[int], name: str, progress: Progress | None) -> float:
        """Feed the data in calls of ``sizes``; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        contract, given = self.session.contract, self.given
        stream = self.session.stream(given.batch, held=given.held)
        worst, done = 0.0, 0
        for size in sizes:
            part = given.between(done, done + size)
            got = stream.step(part) if size == 1 else stream.feed(part, outputs="all")
            worst = max(worst, self._largest(by_step(contract, got, size), done, name, sizes))
            done += size
            if progress is not None:
                progress(name, done, given.steps)
        return worst

    def _largest(self, got: dict[str, Array], start: int, name: str, sizes: list[int]) -> float:
        """The largest error of a call's outputs, at those of its steps that are compared."""
        size = got[self.session.contract.output.name].shape[1]
        here = self.expected.within(start, size)
        steps = self.expected.steps[here]
        if not steps.size:
            return 0.0
        worst = 0.0
        for output, wanted in self.expected.outputs.items():
            error = self._error(got[output][:, steps - start], wanted[:, here])
            if not (error <= self.tolerance).all():  # NaN is not within the tolerance either
                first = int(np.argmax(~(error <= self.tolerance)))
                self._fail(name, output, sizes, int(steps[first]), float(error[first]))
            worst = max(worst, float(error.max()))
        return worst

    def from_position(self, call: FarCall) -> float:
        """The same call in the engine; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        contract = self.session.contract
        stream = self.session.stream(call.part.batch, held=call.part.held)
        stream.load_state({spec.name: _array(spec, call.state[spec.name]) for spec in contract}, _positions(call))
        got = by_step(contract, stream.feed(call.part.between(0, call.part.steps), outputs="all"), call.part.steps)
        worst = 0.0
        for name, wanted in call.expected.items():
            error = self._error(got[name], wanted)
            if not (error <= self.tolerance).all():
                raise VerificationError(
                    f"{name} differs by {error.max():.2e} from torch's in a call from position {call.position} "
                    f"(tolerance {self.tolerance:.0e}): a counter is not exact."
                )
            worst = max(worst, float(error.max()))
        return worst

    @staticmethod
    def _error(got: Array, expected: Array) -> Array:
        """Largest error of each time step, in the scale of ``1 + |expected|``: ``[T]``."""
        wanted = expected.astype(np.float64)
        error = np.abs(got.astype(np.float64) - wanted) / (1 + np.abs(wanted))
        return np.asarray(error.reshape(error.shape[0], error.shape[1], -1).max(axis=(0, 2)))

    def _fail(self, name: str, output: str, sizes: list[int], step: int, error: float) -> None:
        """Stream again beside torch's own step to find the first tensor that differs, and raise."""
        first = self._first_difference(sizes, step)
        where = f"the first tensor to differ is {first}" if first else "every state agrees with torch's own step"
        raise VerificationError(
            f"{name}: {output} at step {step} differs by {error:.2e} from torch's "
            f"full-sequence pass (tolerance {self.tolerance:.0e}); {where}.",
            hint="If torch's own step differs from its full-sequence pass too, the module's two forms disagree."
            if not first
            else None,
        )

    def _first_difference(self, sizes: list[int], last: int) -> str | None:
        from edgemem.runtimes.torch_reference import TorchSession

        given = self.given
        ours = self.session.stream(given.batch, held=given.held)
        with self.stored() as (_, module):
            contract = replace(self.session.contract, states=module.contract().states)  # type: ignore[operator]
            theirs = TorchSession(contract, module).stream(given.batch, held=given.held)
            done = 0
            for size in sizes:
                part = given.between(done, done + size)
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


def _array(spec: StateSpec, tensor: torch.Tensor) -> Array:
    """A state as runtimes take it: the batch axis first, bfloat16 as its bits."""
    first = tensor[None] if spec.batch_axis is None else tensor.movedim(spec.batch_axis, 0)
    if first.dtype == torch.bfloat16:
        return encode_bfloat16(first.float().numpy())
    return np.asarray(first.numpy())


def _positions(call: FarCall) -> Array:
    return np.asarray(call.state[POSITION].numpy())


def far_positions(contract: Contract) -> tuple[int, ...]:
    """Where counters are tried: nowhere, if there are none or if the stream ends before."""
    counts = contract.position == "input" or any(spec.name == POSITION for spec in contract)
    return FAR_POSITIONS if counts and contract.has_fixed_size and contract.max_position is None else ()
