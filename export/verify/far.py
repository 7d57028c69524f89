"""Calls from far positions: a counter that stops, or a wrap that is missed, shows after years of streaming."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from edgemem.bundle import Bundle
from edgemem.contract import POSITION, Contract, StateSpec
from edgemem.dtypes import encode_bfloat16
from edgemem.errors import VerificationError
from edgemem.export.verify.counting import counting_states, lossy_cast, narrow_counter, random_state
from edgemem.export.verify.sequences import Sequences, by_step
from edgemem.export.verify.states import flat_states
from edgemem.export.verify.whole import host_outputs, module_input, outputs_of
from edgemem.export.verify.widened import in_float64
from edgemem.measure import Array, Measure
from edgemem.protocol import TORCH_DTYPES
from edgemem.runtimes import Session

FAR_POSITIONS = (2**24 - 1, 2**31 - 1, 10**12)
_NEAR = 1000
_STEPS = 5
_COUNTING = 1e-4
"""Largest difference, as a share of the spread, between the module in float32 and in float64."""


class FarCalls:
    """The same short call from a random state at a near and at several far positions.

    Attributes:
        near: The call at a near position; ``None`` where the state grows.
        calls: The calls at far ones; none if nothing counts, or if the stream ends before.

    Args:
        bundle: The bundle that will get the same calls.
        module: What it was exported from.
        given: Sequences, of which each call takes the first steps.

    Raises:
        VerificationError: From a far position, the module itself computes something else in float64.
    """

    def __init__(self, bundle: Bundle, module: nn.Module, given: Sequences) -> None:
        own: Contract = module.contract()  # type: ignore[operator]
        part = given.first(min(bundle.max_time, _STEPS))
        counting = counting_states(module, own, given)
        self._counter = narrow_counter(module, own, given, counting)
        self.near: FarCall | None = None
        self.calls: list[FarCall] = []
        if not own.has_fixed_size:
            return
        self.near = near = FarCall(bundle, module, part, counting, _NEAR if own.max_position is None else 0)
        if not _counts(own, counting) or own.max_position is not None:
            return
        limits = Measure(near.expected, _COUNTING, lambda: near.precise)
        for position in FAR_POSITIONS:
            call = FarCall(bundle, module, part, counting, position)
            call.refuse_float32(module, Measure(call.expected, _COUNTING, lambda: None, near=limits))
            self.calls.append(call)

    def compare(self, session: Session, dtype: str, start: Measure) -> tuple[float, dict[str, float]]:
        """Make the calls in the engine.

        Args:
            session: The bundle, opened.
            dtype: The dtype that its graph computes in.
            start: The measure of the outputs from position 0.

        Returns:
            The largest error of the near call, and those of the far ones by position.

        Raises:
            VerificationError: An error exceeds the tolerance, or a state counts in float32 or int32.
        """
        if self._counter is not None:  # after all other comparisons: a state that is lost may look like a counter
            raise self._counter
        call, far = self.near, dict[str, float]()
        if call is None:
            return 0.0, far
        precise = call.precise
        near = Measure(call.expected, start.tolerance, lambda: precise, dtype, start)
        found = call.compare(session, near)
        # How far rounding may go is taken from the near call: far away, torch itself might be less exact.
        for call in self.calls:
            measure = Measure(call.expected, start.tolerance, lambda: None, dtype, near)
            far[str(call.position)] = call.compare(session, measure)
        return found, far


class FarCall:
    """One call from a random state at a position, and torch's outputs.

    Args:
        bundle: The bundle that will get the same call.
        module: What it was exported from.
        part: The data.
        counting: The states that count steps, see :func:`~edgemem.export.verify.counting.counting_states`.
        position: Of the first stream; every other stream of the batch has its own.
    """

    def __init__(
        self, bundle: Bundle, module: nn.Module, part: Sequences, counting: Mapping[str, Tensor], position: int
    ) -> None:
        contract = bundle.contract
        self.position, self.part = position, part
        self.state = random_state(contract, part.batch, position % 2**31)
        rows = torch.tensor([position + 7 * row for row in range(part.batch)])
        self.state[POSITION] = rows
        for spec in contract:
            if spec.name in counting and spec.dtype == "int64" and spec.batch_axis is not None:
                value = self.state[spec.name].movedim(spec.batch_axis, 0)
                mask = counting[spec.name].movedim(spec.batch_axis, 0).expand_as(value)
                value[mask] = rows.view(-1, *[1] * (value.ndim - 1)).expand_as(value)[mask]
        # A graph in half precision keeps some states narrower than the module.
        dtypes = {spec.name: TORCH_DTYPES[spec.dtype] for spec in module.contract()}  # type: ignore[operator]
        self._wide = {name: value.to(dtypes.get(name, value.dtype)) for name, value in self.state.items()}
        self._contract = contract
        self.expected = self._outputs(module)
        self.precise = in_float64(module, lambda: self._outputs(module))

    def refuse_float32(self, module: nn.Module, measure: Measure) -> None:
        """Refuse a module whose float32 outputs differ from its float64 outputs more than near the start.

        Raises:
            VerificationError: They do; the message names the submodule.
        """
        for name, precise in (self.precise or {}).items():
            error = measure.error(name, precise)
            if not (error <= measure.tolerance).all():
                place = lossy_cast(module, self._contract, self.part, self._wide)
                raise VerificationError(
                    f"from position {self.position}, the model's {name} differs by {error.max():.2e} of its spread "
                    f"from the same model in float64: a counter is not exact in float32"
                    f"{f'. {place} makes float32 of it' if place else ''}.",
                    hint="Compute remainders and differences of positions in int64, and convert the small result.",
                )

    def array(self, spec: StateSpec) -> Array:
        """A state as runtimes take it: the batch axis first, bfloat16 as its bits."""
        first = _streams_first(spec, self.state[spec.name])
        if first.dtype == torch.bfloat16:
            return encode_bfloat16(first.float().numpy())
        return np.asarray(first.numpy())

    def compare(self, session: Session, measure: Measure) -> float:
        """The same call in the engine; the largest error.

        Raises:
            VerificationError: It exceeds the tolerance.
        """
        worst = 0.0
        for size in {self.part.steps, 1}:  # a bundle may have a graph for each
            got = self._streamed(session, size)
            for name in self.expected:
                error = measure.error(name, got[name])
                if not (error <= measure.tolerance).all():
                    raise VerificationError(
                        f"{name} differs by {error.max():.2e} of its spread from torch's in a call from a random state "
                        f"at position {self.position} (tolerance {measure.tolerance:.0e}).",
                        hint=None if self.position <= _NEAR else "A counter is not exact.",
                    )
                worst = max(worst, float(error.max()))
        return worst

    def _streamed(self, session: Session, size: int) -> dict[str, Array]:
        """Outputs and replaced states of the engine, in calls of ``size`` steps."""
        contract, steps = session.contract, self.part.steps
        stream = session.stream(self.part.batch, held=self.part.held)
        stream.load_state({spec.name: self.array(spec) for spec in contract}, self.state[POSITION].numpy())
        parts = []
        for start in range(0, steps, size):
            part = stream.feed(self.part.between(start, start + size), outputs="all")
            parts.append({name: value.copy() for name, value in by_step(contract, part, size).items()})
        found = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        states = flat_states(contract, stream.state())
        return {**found, **{spec.output_name: states[spec.name] for spec in _replaced(contract)}}

    def _outputs(self, module: nn.Module) -> dict[str, Array]:
        """Outputs of the module in one call, and the states that it replaces."""
        contract = self._contract
        with torch.no_grad():
            output, new = module(module_input(contract, self.part, 0, self.part.steps), self._wide)
        found = host_outputs(contract, outputs_of(contract, output, self.part.steps))
        for spec in _replaced(contract):
            rows = _streams_first(spec, new[spec.name])
            found[spec.output_name] = rows.reshape(len(rows), 1, -1).numpy()
        return found


def _streams_first(spec: StateSpec, tensor: Tensor) -> Tensor:
    return tensor[None] if spec.batch_axis is None else tensor.movedim(spec.batch_axis, 0)


def _replaced(contract: Contract) -> list[StateSpec]:
    return [spec for spec in contract if spec.update == "replace" and spec.growing_axis is None]


def _counts(contract: Contract, counting: Mapping[str, Tensor]) -> bool:
    return contract.position == "input" or any(spec.name in counting and spec.dtype == "int64" for spec in contract)
