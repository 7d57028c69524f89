"""Parity: streams of a bundle against torch's pass over the whole sequence.

A mismatch is traced to the first step and the first tensor that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgemem.bundle import Bundle
from edgemem.errors import VerificationError
from edgemem.export.verify.expected import Expected, cut
from edgemem.export.verify.sequences import Sequences, by_step
from edgemem.export.verify.states import Stored, find_difference
from edgemem.measure import Array, Constancy, Measure
from edgemem.runtimes import Session

Progress = Callable[[str, int, int], None]


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


class Comparison:
    """Streams the same data through the bundle in different ways, and compares with the full-sequence outputs.

    Args:
        session: The bundle, opened.
        stored: The model with the bundle's weights.
        given: The data.
        expected: Outputs of the full-sequence pass.
        measure: Of these outputs.
    """

    def __init__(
        self, session: Session, stored: Stored, given: Sequences, expected: Expected, measure: Measure
    ) -> None:
        self.session = session
        self.stored = stored
        self.given = given
        self.expected = expected
        self.measure = measure

    def stream(self, sizes: list[int], name: str, progress: Progress | None) -> float:
        """Feed the data in calls of ``sizes``; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        contract, given = self.session.contract, self.given
        stream = self.session.stream(given.batch, held=given.held)
        seen = {spec.name: Constancy() for spec in contract.output_specs}
        worst, done = 0.0, 0
        for size in sizes:
            part = given.between(done, done + size)
            got = by_step(contract, stream.step(part) if size == 1 else stream.feed(part, outputs="all"), size)
            worst = max(worst, self._largest(got, done, name, sizes, seen))
            done += size
            if progress is not None:
                progress(name, done, given.steps)
        for output, values in seen.items():
            refuse_constant(name, output, values, Constancy().add(self.expected.outputs[output]))
        return worst

    def _largest(
        self, got: dict[str, Array], start: int, name: str, sizes: list[int], seen: dict[str, Constancy]
    ) -> float:
        """The largest error of a call's outputs, at those of its steps that are compared."""
        size = got[self.session.contract.output.name].shape[1]
        here = self.expected.within(start, size)
        steps = self.expected.steps[here]
        if not steps.size:
            return 0.0
        worst, tolerance = 0.0, self.measure.tolerance
        for output in self.expected.outputs:
            values = got[output][:, steps - start]
            seen[output].add(values)
            error = self.measure.error(output, values, here)
            if not (error <= tolerance).all():  # NaN is not within the tolerance either
                first = int(np.argmax(~(error <= tolerance)))
                self._fail(name, output, sizes, int(steps[first]), float(error[first]))
            worst = max(worst, float(error.max()))
        return worst

    def _fail(self, name: str, output: str, sizes: list[int], step: int, error: float) -> None:
        """Stream again beside torch's own step to find the first tensor that differs, and raise."""
        found = find_difference(self.session, self.stored, self.given, sizes, step, self.expected, self.measure)
        where = (
            f"the first tensor to differ is {found.first}"
            if found.first
            else "every state agrees with torch's own step"
        )
        raise VerificationError(
            f"{name}: {output} at step {step} differs by {error:.2e} of its spread from torch's "
            f"full-sequence pass (tolerance {self.measure.tolerance:.0e}); {where}.",
            hint="Torch's own step differs from its full-sequence pass too: the module's two forms disagree."
            if found.forms_disagree
            else None,
        )


def refuse_constant(way: str, output: str, got: Constancy, wanted: Constancy) -> None:
    """Refuse an output that has one value in the stream and varies in the full-sequence pass, or the other way round.

    Raises:
        VerificationError: It does.
    """
    for constant, other, where in ((got, wanted, "in the stream"), (wanted, got, "in torch's full-sequence pass")):
        if constant.is_constant and other.varies:
            raise VerificationError(f"{way}: {output} has one value {where} only, at every step of every stream.")
